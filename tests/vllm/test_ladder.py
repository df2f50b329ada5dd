"""A ladder of the demo model on the real vLLM behind the gateway."""

import re
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.harness import eventually
from tests.vllm.served import QUESTION, is_gone, model, served

pytestmark = [pytest.mark.real_model, pytest.mark.vllm]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a recipe that takes one query head of every group and some neurons out."""
    recipe = {
        "weights": {"scheme": "int8"},
        "prune": {
            "query_heads": 1,
            "neurons": 0.1,
            "score": "magnitude",
            "compensate": False,
        },
    }
    file = tmp_path_factory.mktemp("recipe") / "w8-pruned.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def test_ladder_of_full_and_pruned(tmp_path: Path, pruned: str) -> None:
    """A pruned artifact and the full model are served side by side, each with its shapes."""
    rungs = [{"recipe": pruned, "name": "pruned"}, {"recipe": "full"}]
    ladder = {key: value for key, value in model("full").items() if key != "recipe"}
    settings = {"models": {"m": {**ladder, "ladder": rungs, "preload": True}}}
    with served(tmp_path, settings) as gateway:
        assert gateway.ask(QUESTION, model="m@pruned")
        assert gateway.card("m@pruned")["schemes"] == {"int8-rows": 210}
        activated = httpx.post(f"{gateway.url}/admin/models/m@full/activate", timeout=240)
        assert activated.status_code == 200, activated.text
        # The chat's first token is a tie in bf16 logits (The, L), so this is no chat.
        assert "Paris" in gateway.complete("The capital of France is")
        card = gateway.card("m@full")
        assert (card["schemes"], card["numerics"]) == ({"none": 210}, {"none": "W16A16"})
        assert 2.6e8 < card["weights_bytes"] < 2.8e8
        assert re.fullmatch(r"dense \(\w+\)(, dense \(\w+\))*", card["kernels"]["none"])
        below = gateway.processes()
    assert gateway.process.returncode == 0
    eventually(lambda: all(map(is_gone, below)))
