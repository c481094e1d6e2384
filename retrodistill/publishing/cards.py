"""Cards of repositories: the student's own, or one for an index, with the metadata that the hub shows and filters."""

from __future__ import annotations

import re
from typing import Any

from retrodistill.core.errors import UserError, first_line
from retrodistill.core.hub import PREFIX, hub_errors
from retrodistill.core.published import without_local_folders
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.names import hub_name
from retrodistill.publishing.artifacts import CARD, Artifact, refuse_key
from retrodistill.report import text

# Where a card names its own model, before it has a name on the hub.
_PLACEHOLDER = re.compile(r"\b(sentence_transformers|sparse_encoder|cross_encoder|multi_vector_encoder)_model_id\b")
_FOLDER = re.compile(r":FOLDER(?!/OF)")
_TAGS = ("retrodistill", "information-retrieval")


def card_of(artifact: Artifact, repository: str, license: str | None, names: dict[str, str]) -> bytes:
    """The card: README.md of the folder, or one from the manifest, with a license, and with the repository's name.

    Args:
        artifact: What is uploaded.
        repository: Where to, ``USER/NAME``.
        license: Its identifier on the hub, such as ``apache-2.0``; by default that in the card, or of the base model.
        names: Models of an index by role, ``documents`` and ``queries``, as its card names them.

    Raises:
        UserError: The card is not valid, or no license is known.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    path = artifact.folder / CARD
    try:
        content = path.read_text(encoding="utf-8") if path.is_file() else _from_manifest(artifact, repository, names)
        with quiet_libraries():  # a card without metadata is a warning of theirs
            card = ModelCard(content)
    except (ValueError, YAMLError) as error:
        raise UserError(f"{path} has no valid metadata ({first_line(error)}); correct or delete it.") from error
    data: Any = card.data
    data.library_name = data.library_name or "retrodistill"
    data.tags = list(dict.fromkeys([*(data.tags or []), *_TAGS]))
    if data.base_model is None and (base := hub_name(names.get("documents", ""))):
        data.base_model = base
    data.license = license or data.license or _license_of(artifact, data.base_model)
    body = _FOLDER.sub(f":{repository}", _PLACEHOLDER.sub(repository, without_local_folders(card.text)))
    refuse_key(body, CARD)
    return f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n".encode()


def _license_of(artifact: Artifact, base: Any) -> str:
    """The license of the base model of a student, by its card on the hub."""
    found = None
    if artifact.kind == "student" and isinstance(base, str):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        with hub_errors(base):
            try:
                tags = HfApi().model_info(base).tags or []
            except (HfHubHTTPError, OfflineModeIsEnabled):
                tags = []
        found = next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), None)
    if found is None:
        why = f"its base model {base} does not say one" if base else "it has no base model on the hub to take it from"
        if artifact.kind == "index":
            why = "it was made from a collection, whose license counts"
        raise UserError(f"{artifact.folder} has no license ({why}); give one, such as --license apache-2.0.")
    return found


def _from_manifest(artifact: Artifact, repository: str, names: dict[str, str]) -> str:
    """A card of what the manifest says, for an index, or a student without a card."""
    about = artifact.manifest.about
    settings = {key: value for key, value in artifact.manifest.settings.items() if value is not None}
    environment = text.environment(escape=True)
    environment.finalize = text.inert
    body: str = environment.get_template("artifact-card.md.j2").render(
        kind=artifact.kind,
        title=repository.partition("/")[2],
        place=f"{PREFIX}{repository}" if artifact.kind == "index" else repository,
        settings=settings if artifact.kind == "index" else {},
        names=names,
        about=about,
        collection=about.get("collection", {}).get("name", ""),
        size=sum((artifact.folder / name).stat().st_size for name in artifact.files),
    )
    return without_local_folders(body)
