"""Predictions of a model on images and videos: results, data sets, crops, pictures and a contact sheet."""
