"""A request → what the engine loop needs of it: prompts, parameters and grammar, all checked."""

from dataclasses import dataclass, replace

from llguidance import LLMatcher

from gateway.completion import CompletionRequest
from gateway.engine.answer_format import answer_grammar
from gateway.engine.chat import chat_prompt
from gateway.engine.grammar import GrammarCompiler
from gateway.engine.parameters import ModelLimits, sampling_params
from gateway.engine.prompts import Prompt, completion_prompts
from gateway.engine.sequence import SamplingParams
from gateway.engine.tokenizer import Tokenizer
from gateway.engine.tool_choice import ToolChoice, tool_choice, tool_grammar
from gateway.protocol import ChatRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can be answered; ``params`` are those of each prompt's first answer."""

    prompts: list[Prompt]
    params: list[SamplingParams]
    num_per_prompt: int
    matcher: LLMatcher | None = None
    tools: ToolChoice | None = None

    def choices(self) -> list[tuple[Prompt, SamplingParams]]:
        """Return prompt and parameters of every answer, each with a seed of its own."""
        return [
            (prompt, replace(params, seed=_seed(params.seed, number)))
            for prompt, params in zip(self.prompts, self.params, strict=True)
            for number in range(self.num_per_prompt)
        ]


@dataclass(frozen=True, slots=True)
class Preparation:
    """Reads requests for one model; may take long, so it has a thread of its own."""

    tokenizer: Tokenizer
    limits: ModelLimits
    compiler: GrammarCompiler

    def chat(self, request: ChatRequest) -> Prepared:
        """Prepare a chat request.

        Raises:
            ApiError: the request cannot be honoured.
        """
        tools = tool_choice(request, self.tokenizer)
        grammar = None if tools is None else tool_grammar(tools, request)
        grammar = grammar or answer_grammar(request)
        matcher = None if grammar is None else self.compiler.compile(grammar)
        prompt = chat_prompt(
            request.messages,
            self.tokenizer,
            max_model_len=self.limits.max_model_len,
            tools=() if tools is None else tools.offered,
        )
        params = sampling_params(request, limits=self.limits, num_prompt_tokens=len(prompt.ids))
        return Prepared([prompt], [params], request.n or 1, matcher, tools)

    def completion(self, request: CompletionRequest) -> Prepared:
        """Prepare a completion request.

        Raises:
            ApiError: the request cannot be honoured.
        """
        grammar = answer_grammar(request)
        matcher = None if grammar is None else self.compiler.compile(grammar)
        prompts = completion_prompts(
            request,
            self.tokenizer,
            max_model_len=self.limits.max_model_len,
            vocab_size=self.limits.vocab_size,
        )
        params = [
            sampling_params(request, limits=self.limits, num_prompt_tokens=len(prompt.ids))
            for prompt in prompts
        ]
        return Prepared(prompts, params, request.n or 1, matcher)


def _seed(seed: int | None, number: int) -> int | None:
    """Return the seed of the answer with this number; the first one has the request's own."""
    if seed is None:
        return None
    return (seed + number + 2**63) % 2**64 - 2**63
