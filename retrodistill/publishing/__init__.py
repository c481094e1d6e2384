"""Upload students and indexes to the Hugging Face hub."""

from retrodistill.publishing.artifacts import Artifact, open_artifact
from retrodistill.publishing.pushing import Published, push_to_hub

__all__ = ["Artifact", "Published", "open_artifact", "push_to_hub"]
