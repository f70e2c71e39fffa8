"""A task put to a model by this package, timed with compiled programs."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
import time
from collections.abc import (
  Callable,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.evaluation import acting
from me_jax import files, trees
from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.engines.lower_layers import Activations
from me_jax.evals import runner, samples
from me_jax.evals.task import Item, Record, Task, TaskContext
from me_jax.evals.untouched import Room, Untouched
from me_jax.generation import LlamaPredictor
from me_jax.models.language_model import LanguageModel
from me_jax.rebuild import EditedState
from me_jax.typing import (
  ModelState,
  Params,
  ScoreRequest,
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
    is_edited: The model had its edit.
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
  is_edited: bool
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
    edited: EditedState | None = None,
  ):
    """Binds a model.

    Args:
      model: Who is asked.
      sources: Where the data are.
      is_chat: Dialogues are put to the model in chat markup.
      layer: What an edit changes.
      edited: The model after a run of a method that acts in the forward pass;
        None for one with a random change of its weights.
    """
    self.model = model
    self.edited = edited
    self._layer = layer
    self._sources = sources
    self._is_chat = is_chat
    self._predictors: dict[Any, LlamaPredictor] = {}
    self._logs = tempfile.TemporaryDirectory()

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
    selection = lambda: self.select(task, settings, limit)
    first = None
    if is_edited and settings.lower_layers_gb:
      first = self._pass(selection(), settings, is_edited=False)
    for _ in range(_MOST_PASSES):
      done = self._pass(selection(), settings, is_edited=is_edited)
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

  def gap(
    self,
    prompt: Sequence[int],
    token: int,
    other: int,
    *,
    is_edited: bool = False,
  ) -> float:
    """Distance of the logits of two tokens after `prompt`."""
    request = ScoreRequest(
      context=tuple(prompt), continuations=((token,), (other,))
    )
    predictor = self._predictor(settings())
    [(_, result)] = predictor.score(self._state(is_edited), [request])
    (first,), (second,) = result.logprobs
    return abs(float(first) - float(second))

  def _state(self, is_edited: bool) -> ModelState:
    if self.edited is None:
      return ModelState(self._changed if is_edited else self.model.params)
    params, editor = self.model.params, self.edited.editor
    return ModelState(
      params, self.edited.editor_state if is_edited else editor.init(params)
    )

  @functools.cached_property
  def _changed(self) -> Params:
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

  def _predictor(self, settings: EvalConfig) -> LlamaPredictor:
    """The predictor of these settings; one for all that it cannot tell
    apart."""
    # A setting that a predictor depends on stands in both.
    key = (settings.refill, settings.lower_layers_gb)
    if key not in self._predictors:
      max_bytes = int(settings.lower_layers_gb * 1e9)
      self._predictors[key] = LlamaPredictor(
        self.model.config,
        self.model.tokenizer,
        refill=settings.refill,
        activations=Activations(self._layer, max_bytes) if max_bytes else None,
        **acting(self.edited and self.edited.editor),
      )
    return self._predictors[key]

  def _pass(
    self,
    selection: runner.Selection,
    settings: EvalConfig,
    *,
    is_edited: bool,
  ) -> Pass:
    """Evaluates once; the selection must not have made its requests."""
    task, predictor = selection.task, self._predictor(settings)
    state, fingerprint = self._state(is_edited), self.model.fingerprint
    if is_edited:
      fingerprint = f'{fingerprint} edited'
    known = runner.Known
    if is_edited and self.edited and settings.copy_untouched:
      known = lambda: self._known(selection, predictor, state)
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
        state,
        state_fingerprint=fingerprint,
        path=path,
        scores_path=scores_path,
        known=known(),
      )
      end, end_cpu = time.perf_counter(), time.process_time()
      compiled.close()
      stored = samples.read_samples(path, state_fingerprint=fingerprint)
      if not is_edited:
        shutil.copy(path, self._log(task))
      scores = {s['doc_id']: s for s in files.read_jsonl(scores_path)}
    prompts, tokens = {}, {}
    if task.mode == 'gen':
      tokens = {i.id: self._tokens(stored[i.id]) for i in selection.items}
      prompts = {
        item.id: request.prompt
        for item, request in zip(selection.items, requests, strict=True)
      }
    return Pass(
      task=task,
      is_edited=is_edited,
      items=selection.items,
      seconds=end - start,
      cpu=end_cpu - start_cpu,
      prepare=prepared - start,
      compile=compiled.seconds,
      answers={i.id: stored[i.id] | scores[i.id] for i in selection.items},
      tokens=tokens,
      prompts=prompts,
    )

  def _log(self, task: Task) -> pathlib.Path:
    """Where the unedited model's latest answers are kept."""
    return pathlib.Path(self._logs.name) / f'{task.name}.jsonl'

  def _known(
    self,
    selection: runner.Selection,
    predictor: LlamaPredictor,
    state: ModelState,
  ) -> runner.Known:
    """Of the unedited model's latest answers; found out anew each time."""
    untouched = Untouched(
      selection,
      predictor,
      self.edited.editor.probe,
      path=self._log(selection.task),
      fingerprint=self.model.fingerprint,
      room=Room(0),
    )
    return untouched(state)

  def _tokens(self, answer: Record) -> list[int]:
    is_ended = answer['stop_reason'] == 'eos'
    return answer['tokens'] + [self.model.tokenizer.eos_id] * is_ended


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


class _Outcome(NamedTuple):
  category: str
  detail: str


class _NoSandbox:
  """Runs nothing."""

  def run(self, program: str, tests: Sequence[str]) -> _Outcome:
    del program, tests
    return _Outcome('failed', 'not run')
