"""The loop: edit, checkpoint, measure; again and again on the same model.

Every piece of work leaves its result on the disk before the next begins, and
is skipped where its result is there. So a run can be killed at any moment, and
the same command goes on from there to the same numbers.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from me_jax import checkpoints as checkpoints_lib
from me_jax import files, preemption, processes, results
from me_jax.analysis import in_loop
from me_jax.config import RunConfig
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits.editor import Editor
from me_jax.evals import edit_scores, runner
from me_jax.evals.task import Metric, Task
from me_jax.evals.unedited import UneditedAnswers
from me_jax.evals.untouched import Room, Untouched
from me_jax.models.language_model import LanguageModel
from me_jax.progress import Progress
from me_jax.results import EDIT_TASK
from me_jax.typing import ModelState, Predictor, ScoreRequest
from me_jax.workdir import Workdir

_PROBE_TOKENS = 256
_TRIANGLE_FIELDS = {'edit_step', 'fact', 'state_fingerprint', 'scores'}


@dataclasses.dataclass(kw_only=True)
class Run:
  """One run and all that it needs, loaded.

  Attributes:
    config: What to do.
    workdir: Claimed and locked.
    model: At step 0.
    editor: The method, bound to the model.
    predictor: Asks the model, edited or not.
    task_predictor: The same for the tasks, with the editor's
      `task_interventions`; None for no other.
    requests: The facts, in the order of the edits.
    tasks: Measures of general ability.
    probe: Ordinary text; a model that finds it less likely than random tokens
      has collapsed.
    unedited: Where answers of the model at step 0 are shared with other runs;
      None for nowhere.
    analyses: What else is looked at, by name; see `analysis.in_loop`.
    report: Called after each measured step with the rows so far.
  """

  config: RunConfig
  workdir: Workdir
  model: LanguageModel
  editor: Editor
  predictor: Predictor
  requests: Sequence[EditRequest]
  tasks: Sequence[Task]
  probe: str
  task_predictor: Predictor | None = None
  unedited: UneditedAnswers | None = None
  analyses: Mapping[str, in_loop.Measure] = dataclasses.field(
    default_factory=dict
  )
  report: Callable[[list[results.Row]], None] = lambda rows: None


def batches(
  requests: Sequence[EditRequest], size: int
) -> list[Sequence[EditRequest]]:
  """The requests of edit steps 1, 2, ...; the last may be short."""
  return [requests[i : i + size] for i in range(0, len(requests), size)]


def eval_steps(config: RunConfig) -> list[int]:
  """Edit steps after which everything is measured, from numbers of edits.

  Raises:
    ValueError: A number is out of range or falls inside an edit step.
  """
  steps = set()
  for edits in config.eval_steps:
    whole = edits % config.edit_batch_size == 0 or edits == config.num_edits
    if not 0 <= edits <= config.num_edits or not whole:
      raise ValueError(
        f'eval_steps are numbers of edits from 0 to num_edits = '
        f'{config.num_edits}, in multiples of edit_batch_size = '
        f'{config.edit_batch_size}; got {edits}.'
      )
    steps.add(math.ceil(edits / config.edit_batch_size))
  return sorted(steps)


def run(job: Run) -> ModelState:
  """The model after the last edit step, with everything measured on the way.

  Raises:
    FloatingPointError: An edit is not finite; it was not saved.
    ValueError: What the workdir holds does not belong to this run.
    OSError: The disk is full.
  """
  config, workdir = job.config, job.workdir
  steps = batches(job.requests, config.edit_batch_size)
  measured = set(eval_steps(config))
  checkpoints = checkpoints_lib.Checkpoints(
    workdir.checkpoints, job.model.fingerprint
  )
  state = ModelState(job.model.params, job.editor.init(job.model.params))
  measure = _Measurements(job, len(steps))
  try:
    with Progress(len(steps), 'edits', 'steps') as progress:
      progress(0)
      for step in range(len(steps) + 1):
        collapsed = False
        if step:
          try:
            state = _edit(job, checkpoints, state, step, steps[step - 1])
          except FloatingPointError as e:
            if not config.stop_on_collapse:
              raise
            logging.warning('%s The run ends before edit step %d.', e, step)
            fingerprint = checkpoints.fingerprint(step - 1)
            measure(step - 1, state, fingerprint, everything=True)
            break
          collapsed = config.stop_on_collapse and _collapsed(job, state, step)
          preemption.stop_if_told()
        measure(
          step,
          state,
          checkpoints.fingerprint(step),
          everything=step in measured or collapsed,
        )
        progress(step)
        if collapsed:
          break
  finally:
    checkpoints.close()
  return state


def _edit(
  job: Run,
  checkpoints: checkpoints_lib.Checkpoints,
  state: ModelState,
  step: int,
  requests: Sequence[EditRequest],
) -> ModelState:
  """The state after `step`: from its checkpoint, or made and saved now."""
  if step <= checkpoints.last_step:
    saved = checkpoints.load(step)
    cases = [r['case_id'] for r in saved.record['requests']]
    expected = [r.case_id for r in requests]
    if cases != expected:
      raise ValueError(
        f'Edit step {step} in {job.workdir.checkpoints} wrote {cases}, this '
        f'run has {expected}. Choose another --workdir.'
      )
    params = edit_lib.apply_edit(state.params, saved.edit)
    return ModelState(params, saved.editor_state(state.editor))
  start = time.monotonic()
  edit, editor_state, info = job.editor.edit(
    state.params, state.editor, requests
  )
  edit, editor_state = processes.as_on_first((edit, editor_state))
  params = edit_lib.apply_edit(state.params, edit)
  checkpoints_lib.check_finite(params, edit)
  checkpoints.save(
    step,
    edit,
    {
      'requests': [r.to_json() for r in requests],
      'info': info,
      'seconds': time.monotonic() - start,
    },
    editor_state,
  )
  return ModelState(params, editor_state)


def _collapsed(job: Run, state: ModelState, step: int) -> bool:
  """Whether ordinary text is less likely than tokens drawn at random."""
  ids = tuple(job.model.tokenizer.encode(job.probe)[:_PROBE_TOKENS])
  request = ScoreRequest(
    context=ids[:-1], continuations=(ids[-1:],), score_context=True
  )
  [(_, result)] = job.predictor.score(state, [request])
  logprobs = np.concatenate([result.context_logprobs, *result.logprobs])
  loss = -float(logprobs.mean(dtype=np.float64))
  guessing = math.log(job.model.config.vocab_size)
  if loss < guessing:
    return False
  logging.warning(
    'The model has collapsed after edit step %d: %.2f nats per token on plain '
    'text, guessing costs %.2f. The run ends here, measured.',
    step,
    loss,
    guessing,
  )
  return True


class _Measurements:
  """What was measured, and measuring what was not."""

  def __init__(self, job: Run, num_steps: int):
    self._job = job
    size = job.config.edit_batch_size
    self._step_of_fact = [1 + i // size for i in range(len(job.requests))]
    self._facts_after = [
      min(step * size, len(job.requests)) for step in range(num_steps + 1)
    ]
    # Prompts are made once for all states.
    self._selections = [
      runner.select(
        task,
        limit=job.config.limit or None,
        seed=job.config.seed,
        shares_prefixes=job.config.evals.shared_prefix,
        stores_prompts=job.config.evals.store_prompts,
      )
      for task in job.tasks
    ]
    self._room = Room(int(job.config.evals.lower_layers_gb * 1e9))
    self._untouched = [self._make_untouched(s) for s in self._selections]
    self._triangle: dict[tuple[int, int], dict[str, Any]] = {}
    self._states: dict[int, set[str]] = {}
    records = processes.from_first(
      lambda: files.read_jsonl(job.workdir.triangle)
    )
    for number, record in enumerate(records, 1):
      if missing := _TRIANGLE_FIELDS - set(record):
        raise ValueError(
          f'{job.workdir.triangle}:{number}: the record lacks '
          f'{", ".join(sorted(missing))}. Restore the file, or delete it to '
          'have it made again.'
        )
      self._triangle[record['edit_step'], record['fact']] = record
      self._of_state(record['edit_step'], record['state_fingerprint'])
    self._rows = results.read_rows(job.workdir.results)
    for row in self._rows:
      self._of_state(row.edit_step, row.state)
    # A killed process may have cut the last group short; it is scored again
    # from its samples.
    self._written = {(r.edit_step, r.task) for r in self._rows}
    if self._rows:
      self._written.remove((self._rows[-1].edit_step, self._rows[-1].task))

  def __call__(
    self, step: int, state: ModelState, fingerprint: str, *, everything: bool
  ) -> None:
    """Measures the model after `step`: everything, or only the new facts."""
    self._check_state(step, fingerprint)
    self._facts(step, state, fingerprint, everything)
    if everything:
      self._tasks(step, state, fingerprint)
      self._analyses(step, state, fingerprint)
      self._job.report(self._rows)

  def _facts(
    self, step: int, state: ModelState, fingerprint: str, everything: bool
  ) -> None:
    """The facts' scores after `step`: all so far, or only the new ones."""
    job = self._job
    if step == 0:
      facts = range(len(job.requests))
    elif everything:
      facts = range(self._facts_after[step])
    else:
      facts = range(self._facts_after[step - 1], self._facts_after[step])
    # All or none: scores then never depend on where a run was interrupted.
    missing = [fact for fact in facts if (step, fact) not in self._triangle]
    if missing:
      scores = edit_scores.score_facts(
        job.model.tokenizer,
        job.predictor,
        state,
        [job.requests[fact] for fact in facts],
        None
        if step == 0
        else [self._triangle[0, fact]['locality'] for fact in facts],
        job.editor.lookups,
      )
      records = [
        {
          'edit_step': step,
          'fact': fact,
          'case_id': job.requests[fact].case_id,
          'state_fingerprint': fingerprint,
          **found._asdict(),
        }
        for fact, found in zip(facts, scores, strict=True)
        if fact in missing
      ]
      files.append_jsonl(job.workdir.triangle, records)
      self._triangle |= {(step, r['fact']): r for r in records}
    if everything:
      cells = {key: r['scores'] for key, r in self._triangle.items()}
      lookups = [
        self._triangle[step, fact].get('lookups', {}) for fact in facts
      ]
      metrics = [
        *edit_scores.metrics(step, facts, cells, self._step_of_fact),
        *edit_scores.distances(lookups),
        *self._summary(step, state),
      ]
      self._write(step, fingerprint, EDIT_TASK, metrics)

  def _summary(self, step: int, state: ModelState) -> list[Metric]:
    """What the editor says of its state."""
    summary = self._job.editor.summary
    found = summary(state.editor) if summary else {}
    n = self._facts_after[step]
    return [Metric(name=k, value=v, n=n) for k, v in found.items()]

  def _of_state(self, step: int, fingerprint: str) -> None:
    self._states.setdefault(step, set()).add(fingerprint)

  def _check_state(self, step: int, fingerprint: str) -> None:
    """Raises ValueError if what is stored is about another model."""
    for stored in self._states.get(step, set()) - {fingerprint}:
      workdir = self._job.workdir
      raise ValueError(
        f'{workdir.path} holds scores of another model after edit step {step} '
        f'({stored[:12]}, this one is {fingerprint[:12]}): its edits were made '
        f'again and differ. Delete {workdir.triangle.name}, '
        f'{workdir.results.name}, samples/ and scores/ to have all '
        'measured again.'
      )

  def _tasks(self, step: int, state: ModelState, fingerprint: str) -> None:
    """Every task after `step`."""
    job = self._job
    for selection, untouched in zip(
      self._selections, self._untouched, strict=True
    ):
      name = selection.task.name
      if (step, name) in self._written:
        continue
      known = untouched(state) if step and untouched else runner.NOTHING
      log = job.workdir.samples(name, step)
      shared = job.unedited if step == 0 else None
      if shared:
        kept = shared.fetch(selection, state, log)
      metrics = runner.evaluate(
        selection,
        job.task_predictor or job.predictor,
        state,
        state_fingerprint=fingerprint,
        path=log,
        scores_path=job.workdir.scores(name, step),
        known=known,
        progress=functools.partial(
          Progress, what=f'step {step}, {name}', unit='items'
        ),
      )
      if shared:
        shared.keep(kept, log)
      self._write(step, fingerprint, name, metrics)

  def _analyses(self, step: int, state: ModelState, fingerprint: str) -> None:
    """Every analysis after `step`, of what the tasks left, too."""
    for name, measure in self._job.analyses.items():
      if (step, name) not in self._written:
        self._write(step, fingerprint, name, measure(step, state.params))

  def _make_untouched(self, selection: runner.Selection) -> Untouched | None:
    """What finds the answers of step 0 that a later state leaves as they are;
    None for a method that changes all."""
    job, evals = self._job, self._job.config.evals
    if job.editor.probe is None or not evals.copy_untouched:
      return None
    return Untouched(
      selection,
      job.task_predictor or job.predictor,
      job.editor.probe,
      path=job.workdir.samples(selection.task.name, 0),
      fingerprint=job.model.fingerprint,
      room=self._room,
    )

  def _write(
    self, step: int, fingerprint: str, task: str, metrics: Sequence[Metric]
  ) -> None:
    """Appends the rows of one task, unless they are there."""
    job = self._job
    there = {
      r.metric for r in self._rows if (r.edit_step, r.task) == (step, task)
    }
    rows = results.rows(
      [metric for metric in metrics if metric.name not in there],
      run=job.workdir.path.name,
      method=job.config.method.name,
      model=job.config.model.name,
      edit_step=step,
      num_edits=self._facts_after[step],
      task=task,
      state=fingerprint,
    )
    results.append_rows(job.workdir.results, rows)
    self._rows.extend(rows)
