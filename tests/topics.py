"""Words of the tiny collection, by topic, and words between them."""

TOPICS = {
    "cardio": ["heart", "artery", "blood", "pressure", "vessel", "pulse", "valve", "stroke", "cholesterol", "vein"],
    "astro": ["star", "planet", "orbit", "telescope", "galaxy", "comet", "moon", "nebula", "gravity", "rocket"],
    "food": ["bread", "cheese", "olive", "pepper", "sugar", "flour", "butter", "garlic", "onion", "recipe"],
    "music": ["violin", "piano", "chord", "melody", "rhythm", "drum", "opera", "tenor", "cello", "flute"],
    "law": ["court", "judge", "jury", "verdict", "contract", "statute", "appeal", "witness", "lawyer", "trial"],
    "ocean": ["wave", "coral", "reef", "whale", "tide", "current", "island", "shore", "shark", "plankton"],
}
FILLERS = ["the", "of", "and", "a", "in", "study", "shows", "that", "with", "new", "for", "is", "was", "by"]
