"""From an open checkpoint or artifact to a model that transformers' modelling runs."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.masking_utils import sdpa_mask

from compression.architecture import read_config, require_unquantized
from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.experts import Naming, read_naming, routers
from compression.loading import Checkpoint, make_linear
from compression.recipe import KvCache
from gateway.engine.cache import Cache
from gateway.engine.general.attention import NAME, attend
from gateway.engine.general.blueprint import Blueprint, decoder_of, read_blueprint
from gateway.engine.general.decoder import GeneralDecoder
from gateway.engine.general.experts import empty, pack_experts
from gateway.engine.general.linears import PackedModule, Vacant, dense_layer, is_plain_linear
from gateway.engine.general.precision import settle
from gateway.engine.general.rotations import pin_longrope
from gateway.engine.kv_codecs import make_codecs

_LOAD_ERRORS = (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


def load_general(checkpoint: Checkpoint, wanted: int) -> GeneralDecoder:
    """Load every weight and return the model, for sequences of ``wanted`` tokens or fewer.

    Raises:
        UnsupportedArchitecture: it cannot be served; nothing was read but its config.
        CorruptCheckpoint: weights are missing or do not fit the config.
    """
    directory = checkpoint.directory
    if checkpoint.manifest is None:
        require_unquantized(read_config(directory), where=str(directory))
    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, sdpa_mask)
    with _quiet():
        blueprint = read_blueprint(directory)
        coded = _coded(blueprint, checkpoint)
        model = _load_dense(blueprint, checkpoint, coded)
    _pack(model, checkpoint, coded, routers(blueprint.model))
    settle(model)
    max_tokens = min(wanted, blueprint.shape.context or wanted)
    pin_longrope(model, max_tokens)
    decoder = GeneralDecoder(blueprint.shape, model, decoder_of(model), max_tokens)
    _require_runs(decoder)
    # What this leaves can hold weights in cycles, and nobody else looks while a process starts.
    gc.collect()
    return decoder


@dataclass(frozen=True, slots=True)
class _Coded:
    """What of a model is held as codes."""

    linears: Mapping[str, str]
    """Module path → path in the files."""
    experts: frozenset[str]
    """Paths of the modules of experts."""
    naming: Naming | None
    """None of a plain checkpoint."""


def _coded(blueprint: Blueprint, checkpoint: Checkpoint) -> _Coded:
    """Return the modules whose weights are held as codes.

    Experts of an artifact are read one by one, those that the recipe keeps as well.
    """
    if checkpoint.manifest is None:
        return _Coded({}, frozenset(), None)
    where = repr(str(checkpoint.directory))
    names = [each.name for each in checkpoint.manifest.tensors]
    naming = read_naming(blueprint.model, names, where)
    linears = {}
    for path, module in blueprint.model.named_modules():
        file_path = naming.weights.get(path)
        if file_path is None or not checkpoint.holds_codes(f"{file_path}.weight"):
            continue
        if not is_plain_linear(module):
            raise UnsupportedArchitecture(
                f"{where}: {path!r} is quantized, and as a {type(module).__name__!r} it is more "
                "than a linear layer: keep it in the recipe"
            )
        linears[path] = file_path
    experts = {parameter.rpartition(".")[0] for parameter in naming.experts}
    return _Coded(linears, frozenset(experts), naming)


def _load_dense(blueprint: Blueprint, checkpoint: Checkpoint, coded: _Coded) -> Any:
    """Return the model with all weights that are no codes, in bf16."""
    config = blueprint.model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        model, found = _with_vacancies(type(blueprint.model), coded).from_pretrained(
            checkpoint.directory,
            config=config,
            dtype=torch.bfloat16,
            attn_implementation=blueprint.attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CorruptCheckpoint(
            f"{str(checkpoint.directory)!r}: the weights do not fit the config ({reason}): fetch "
            "the checkpoint again"
        ) from None
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise CorruptCheckpoint(
            f"{str(checkpoint.directory)!r} lacks the tensors of {missing}: fetch the checkpoint "
            "again"
        )
    return model.eval().requires_grad_(False)


def _with_vacancies(model_class: Any, coded: _Coded) -> Any:
    """Return the class with nothing where codes belong, so that no memory is taken for them."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for path in coded.linears:
            self.set_submodule(path, Vacant())
        for path in coded.experts:
            empty(self.get_submodule(path))

    body = {"__init__": build, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), body)


def _pack(model: Any, checkpoint: Checkpoint, coded: _Coded, choosing: frozenset[str]) -> None:
    """Put packed layers in the place of every linear layer, and of experts that are codes.

    What chooses experts stays transformers' own, in float32: some modules look at its weight.
    """
    made: dict[int, PackedModule] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path in choosing:
            continue
        if id(module) not in made:
            if isinstance(module, Vacant):
                stem = coded.linears[path]
                weight, bias = (
                    checkpoint.weight(f"{stem}.weight"),
                    checkpoint.vector(f"{stem}.bias"),
                )
                packed = make_linear(weight, bias, activations=checkpoint.activations)
            else:
                dense = dense_layer(module)
                if dense is None:
                    continue
                packed = dense
            made[id(module)] = PackedModule(packed)
        model.set_submodule(path, made[id(module)])
    if coded.naming is not None:
        for path in sorted(coded.experts):
            family = model.get_submodule(path)
            model.set_submodule(path, pack_experts(family, path, coded.naming, checkpoint))


def _require_runs(decoder: GeneralDecoder) -> None:
    """Read two tokens, so that what does not fit is told now and not to the first client."""
    shape = decoder.architecture
    cache = Cache(shape, make_codecs(KvCache(), shape, None), 2)
    try:
        logits = decoder.logits(decoder.hidden([(cache, [0, 0])]))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnsupportedArchitecture(
            f"architecture {shape.name!r} is not supported by the embedded engine: transformers' "
            f"model does not run over its cache ({reason}): serve it with vLLM"
        ) from None
    if tuple(logits.shape) != (2, shape.vocab_size):
        raise UnsupportedArchitecture(
            f"architecture {shape.name!r} is not supported by the embedded engine: its logits have "
            f"shape {list(logits.shape)}, not [2, {shape.vocab_size}]: serve it with vLLM"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and remarks out of the log."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
