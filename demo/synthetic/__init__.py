"""Made-up pictures with exact boxes."""
