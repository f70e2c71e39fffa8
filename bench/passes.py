"""A task put to a model by this package, timed with compiled programs."""

import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import (
  Callable,
  Collection,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import files, trees
from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.engines.lower_layers import Activations
from me_jax.evals import runner, samples
from me_jax.evals.task import Item, Record, Task, TaskContext
from me_jax.generation import LlamaPredictor
from me_jax.models.language_model import LanguageModel
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  ModelState,
  Params,
  ScoreRequest,
  ScoreResult,
)

MakeTask = Callable[[TaskContext], Task]

_MOST_PASSES = 4
_SMALL_SHARE = 0.1
_COMPILE_EVENTS = '/jax/core/compile/'
_EDIT_SIZE = 0.05  # of the norm of the edited kernel


def settings(**changes: Any) -> EvalConfig:
  """All shortcuts of one model state: nothing is kept for a next one."""
  return EvalConfig(**{'lower_layers_gb': 0.0, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """One evaluation of a task in which little or nothing was compiled.

  Attributes:
    task: What was asked.
    items: Of whom, in the order of the task.
    seconds: From the items to the stored scores: prompts, packing, the device,
      reading, storing and scoring the answers.
    cpu: What the processor worked meanwhile, in seconds, over all cores. Other
      programs disturb it less, and an accelerator's work is not in it.
    prepare: Of these, for the prompts: their tokens, and what they begin with
      in common.
    compile: What the first pass took longer, or, if no other was needed, what
      compilation took of it, which `seconds` include; if something is kept
      from state to state, keeping it is included.
    answers: The stored answers with their scores, by item id.
    tokens: What was generated, the end token included, by item id; empty for
      likelihoods.
    prompts: Token ids of the prompts, by item id; empty for likelihoods.
  """

  task: Task
  items: tuple[Item, ...]
  seconds: float
  cpu: float
  prepare: float
  compile: float
  answers: Mapping[str, Record]
  tokens: Mapping[str, Sequence[int]]
  prompts: Mapping[str, Sequence[int]]


class Passes:
  """Evaluates tasks; compiled programs are kept from one to the next."""

  def __init__(
    self,
    model: LanguageModel,
    *,
    sources: DataSources,
    is_chat: bool,
    layer: int,
  ):
    """Binds a model.

    Args:
      model: Who is asked.
      sources: Where the data are.
      is_chat: Dialogues are put to the model in chat markup.
      layer: What an edit changes.
    """
    self.model = model
    self._layer = layer
    self._sources = sources
    self._is_chat = is_chat
    self._predictors: dict[Any, _Recorder] = {}

  def task(self, make: MakeTask, settings: EvalConfig) -> Task:
    """The task. Its programs (MBPP) are not run: all of them fail."""
    return make(
      TaskContext(
        sources=self._sources,
        tokenizer=self.model.tokenizer,
        settings=settings,
        is_chat=self._is_chat,
        sandbox=_NoSandbox(),
      )
    )

  def select(
    self, task: Task, settings: EvalConfig, limit: int | None
  ) -> runner.Selection:
    """`limit` of the items, None for all, as `launch.evaluate` selects."""
    return runner.select(
      task, limit=limit, seed=0, shares_prefixes=settings.shared_prefix
    )

  def timed(
    self,
    make: MakeTask,
    settings: EvalConfig,
    *,
    limit: int | None,
    is_edited: bool = False,
  ) -> Pass:
    """The first pass of which compilation is less than a tenth.

    Args:
      make: The task.
      settings: The shortcuts.
      limit: Items; None for all.
      is_edited: The model is one with an edit. What is kept from state to
        state comes from a pass over the model without it.

    Raises:
      RuntimeError: There is none: something is compiled each time.
    """
    task = self.task(make, settings)
    predictor = self._predictor(settings)
    selection = lambda: self.select(task, settings, limit)
    first = None
    if is_edited and settings.lower_layers_gb:
      first = self._pass(selection(), predictor, is_edited=False)
    for _ in range(_MOST_PASSES):
      done = self._pass(selection(), predictor, is_edited=is_edited)
      first = first or done
      if done.compile < _SMALL_SHARE * done.seconds:
        if first is not done:
          longer = first.seconds - done.seconds
          done = dataclasses.replace(done, compile=longer)
        return done
    raise RuntimeError(
      f'{task.name}: programs were still compiled in pass {_MOST_PASSES} over '
      'the same items, so that no time can be taken. Shapes must depend on '
      'the requests alone.'
    )

  def gap(self, prompt: Sequence[int], token: int, other: int) -> float:
    """Distance of the logits of two tokens after `prompt`."""
    request = ScoreRequest(
      context=tuple(prompt), continuations=((token,), (other,))
    )
    predictor = self._predictor(settings())
    [(_, result)] = predictor.score(ModelState(self.model.params), [request])
    (first,), (second,) = result.logprobs
    return abs(float(first) - float(second))

  @functools.cached_property
  def _edited(self) -> Params:
    """The model's parameters, of which one kernel has a random change of rank
    one."""
    path = f'layers/{self._layer}/mlp/down_proj/kernel'
    kernel = np.asarray(trees.get(self.model.params, path))
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(n) for n in kernel.shape)
    change = np.outer(left / np.linalg.norm(left), right)
    change *= _EDIT_SIZE * np.linalg.norm(kernel) / np.linalg.norm(right)
    return trees.set_leaf(
      self.model.params, path, jnp.asarray(kernel + change, kernel.dtype)
    )

  def _predictor(self, settings: EvalConfig) -> '_Recorder':
    """The predictor of these settings; one for all that it cannot tell
    apart."""
    # A setting that a predictor depends on stands in both.
    key = (settings.refill, settings.lower_layers_gb)
    if key not in self._predictors:
      max_bytes = int(settings.lower_layers_gb * 1e9)
      predictor = LlamaPredictor(
        self.model.config,
        self.model.tokenizer,
        refill=settings.refill,
        activations=Activations(self._layer, max_bytes) if max_bytes else None,
      )
      self._predictors[key] = _Recorder(predictor)
    return self._predictors[key]

  def _pass(
    self,
    selection: runner.Selection,
    predictor: '_Recorder',
    *,
    is_edited: bool,
  ) -> Pass:
    """Evaluates once; the selection must not have made its requests."""
    model, task = self.model, selection.task
    params, fingerprint = model.params, model.fingerprint
    if is_edited:
      params, fingerprint = self._edited, f'{fingerprint} edited'
    predictor.generated.clear()
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'samples.jsonl'
      scores_path = pathlib.Path(folder) / 'scores.jsonl'
      compiled = _Compilation()
      start, start_cpu = time.perf_counter(), time.process_time()
      requests = selection.requests
      prepared = time.perf_counter()
      runner.evaluate(
        selection,
        predictor,
        ModelState(params),
        state_fingerprint=fingerprint,
        path=path,
        scores_path=scores_path,
      )
      end, end_cpu = time.perf_counter(), time.process_time()
      compiled.close()
      stored = samples.read_samples(path, state_fingerprint=fingerprint)
      scores = {s['doc_id']: s for s in files.read_jsonl(scores_path)}
    prompts = {}
    if task.mode == 'gen':
      prompts = {
        item.id: request.prompt
        for item, request in zip(selection.items, requests, strict=True)
      }
    return Pass(
      task=task,
      items=selection.items,
      seconds=end - start,
      cpu=end_cpu - start_cpu,
      prepare=prepared - start,
      compile=compiled.seconds,
      answers={i.id: stored[i.id] | scores[i.id] for i in selection.items},
      tokens={
        name: predictor.generated[prompt] for name, prompt in prompts.items()
      },
      prompts=prompts,
    )


class _Compilation:
  """Seconds spent on tracing and compiling until it is closed; where one
  function is traced inside another, its time counts twice."""

  def __init__(self):
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._add)

  def close(self) -> None:
    """Stops listening."""
    jax.monitoring.unregister_event_duration_listener(self._add)

  def _add(self, event: str, seconds: float, **kwargs: Any) -> None:
    del kwargs
    if event.startswith(_COMPILE_EVENTS):
      self.seconds += seconds


class _Recorder:
  """A predictor that remembers what it generated, by prompt.

  Equal prompts have equal answers.
  """

  def __init__(self, predictor: LlamaPredictor):
    self.generated: dict[tuple[int, ...], list[int]] = {}
    self._predictor = predictor

  def score(
    self, state: ModelState, requests: Sequence[ScoreRequest]
  ) -> Iterator[tuple[int, ScoreResult]]:
    return self._predictor.score(state, requests)

  def generate(
    self,
    state: ModelState,
    requests: Sequence[GenerateRequest],
    *,
    skip: Collection[int] = (),
  ) -> Iterator[tuple[int, GenerateResult]]:
    answers = self._predictor.generate(state, requests, skip=skip)
    for index, result in answers:
      tokens = result.tokens.tolist()
      if result.stop_reason == 'eos':
        tokens.append(self._predictor.eos_id)
      self.generated[requests[index].prompt] = tokens
      yield index, result


class _Outcome(NamedTuple):
  category: str
  detail: str


class _NoSandbox:
  """Runs nothing."""

  def run(self, program: str, tests: Sequence[str]) -> _Outcome:
    del program, tests
    return _Outcome('failed', 'not run')
