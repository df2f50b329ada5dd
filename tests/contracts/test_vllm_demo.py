"""What `make vllm-demo` promises: the official client asks a question and is answered."""

import openai
import pytest

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize("engine_url", ["vllm"], indirect=True)
def test_the_demo_answers(engine_url: str) -> None:
    """The int4 artifact on vLLM knows the answer, under the name that the demo prints."""
    client = openai.OpenAI(base_url=f"{engine_url}/v1", api_key="unused")
    reply = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert "Paris" in (reply.choices[0].message.content or "")
