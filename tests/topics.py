"""Words of the tiny collection, by topic, words between them, and a few documents in these words."""

TOPICS = {
    "cardio": ["heart", "artery", "blood", "pressure", "vessel", "pulse", "valve", "stroke", "cholesterol", "vein"],
    "astro": ["star", "planet", "orbit", "telescope", "galaxy", "comet", "moon", "nebula", "gravity", "rocket"],
    "food": ["bread", "cheese", "olive", "pepper", "sugar", "flour", "butter", "garlic", "onion", "recipe"],
    "music": ["violin", "piano", "chord", "melody", "rhythm", "drum", "opera", "tenor", "cello", "flute"],
    "law": ["court", "judge", "jury", "verdict", "contract", "statute", "appeal", "witness", "lawyer", "trial"],
    "ocean": ["wave", "coral", "reef", "whale", "tide", "current", "island", "shore", "shark", "plankton"],
}
FILLERS = ["the", "of", "and", "a", "in", "study", "shows", "that", "with", "new", "for", "is", "was", "by"]
FIVE_DOCUMENTS = {  # title and text by id
    "a": ("heart", "the heart and the artery of a whale"),
    "b": ("star", "a star and the moon in orbit"),
    "c": ("bread", "bread with butter and garlic"),
    "d": ("moon", "the moon is a planet of gravity"),
    "e": ("", "violin and piano in an opera"),
}
