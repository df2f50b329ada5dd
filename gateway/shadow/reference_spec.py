"""How the reference of a model is started, or reached: the full model, behind everybody else."""

from compression.recipe import FULL
from gateway.model_settings import ModelSettings, VariantSettings
from gateway.shadow.vllm_scorer import STEP_TOKENS
from gateway.shadow_settings import ReferenceSettings
from gateway.specs import VariantSpec

NICENESS = 19
_NAME = "reference"


def reference_spec(alias: str, model: ModelSettings, settings: ReferenceSettings) -> VariantSpec:
    """Return how the reference of a model is started, or reached."""
    url = settings.urls.get(alias)
    if url is not None:
        there = VariantSettings(model=model.model, recipe=FULL, urls=(url,))
        return VariantSpec(alias, _NAME, there)
    here = VariantSettings(
        model=model.model,
        revision=model.revision,
        recipe=FULL,
        engine=settings.engine,
        vllm_python=model.vllm_python if settings.engine == "vllm" else None,
        vllm_options=settings.vllm_options,
        threads=settings.threads,
        max_model_len=model.max_model_len,
        max_num_seqs=1,
        max_num_batched_tokens=STEP_TOKENS if settings.engine == "vllm" else None,
        # A text that is read twice shall be computed twice, or the noise floor says nothing.
        enable_prefix_caching=False,
    )
    return VariantSpec(alias, _NAME, here, niceness=NICENESS, is_reference=True)
