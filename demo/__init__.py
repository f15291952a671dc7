"""The demonstration: a made-up data set and video, the whole pipeline on them, and a report page."""
