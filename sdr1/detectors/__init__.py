"""Published detectors of unsafe images: judges report them, reward terms penalise what they flag."""
