"""What tests read of answers."""


def message(answer):
    """The sentence of an error."""
    return answer.json()["error"]["message"]
