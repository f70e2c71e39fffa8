"""A document whose tables, figures and numbers come from measured runs.

Its template is Markdown with Jinja's marks:

    {{ table('table2', ['rome', 'grace']) }}
    After 100 edits {{ value('rome', 'edit', 'sequential_reliability', 100) }} %
    are left, {{ value('rome', 'wikitext_ppl', 'ppl', 100, interval=True) }} is
    the perplexity. {{ figure('facts', ['rome']) }}
    {{ training('training_scores', 'mend_training') }} End:
    {{ trained('mend_training', 'reliability') }} %.

Runs, and trainings of MEND, go by the names of their workdirs. A number that
was not measured is an error, and so is a run that is not finished.
"""

import pathlib
from collections.abc import Sequence

import jinja2

from me_jax import files
from me_jax.reporting import (
  draw,
  measured_run,
  significance,
  table,
  table_forms,
  tables,
  training_figures,
  write,
)
from me_jax.reporting.figure import Figure
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study, study


def make(
  template: files.PathLike, output: files.PathLike, root: files.PathLike
) -> list[pathlib.Path]:
  """Writes the document and its figures; returns the files.

  Args:
    template: Its text.
    output: The document. Figures go to a directory beside it, which has its
      name without the ending.
    root: Directory of the workdirs.

  Raises:
    FileNotFoundError: There is no such directory.
    ValueError: The template is malformed, or asks for what was not measured,
      or the document would replace it.
    OSError: Something cannot be read or written.
  """
  output, root = pathlib.Path(output), pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(
      f'{root} is not a directory. Name the one that holds the workdirs.'
    )
  if (
    output.suffix != '.md'
    or output.resolve() == pathlib.Path(template).resolve()
  ):
    raise ValueError(
      f'The document is to be another Markdown file than {template}, named '
      f'*.md; got {output}.'
    )
  made = _Document(root, output.stem)
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  source = pathlib.Path(template).read_text(encoding='utf-8')
  try:
    text = environment.from_string(source).render(
      table=made.table,
      value=made.value,
      figure=made.figure,
      training=made.training,
      trained=made.trained,
    )
  # TypeError: an argument too many or too few.
  except (jinja2.TemplateError, TypeError) as e:
    at = f', line {line}' if (line := getattr(e, 'lineno', None)) else ''
    raise ValueError(f'{template}{at}: {e}') from e
  pictures = {output.parent / name: png for name, png in made.pictures.items()}
  for path, png in pictures.items():
    files.write_atomic(path, png)
  files.write_atomic(output, text)
  return [output, *pictures]


class _Document:
  """What a template may ask for.

  Attributes:
    pictures: PNG, by path from the document.
  """

  def __init__(self, root: pathlib.Path, directory: str):
    self.pictures: dict[str, bytes] = {}
    self._root, self._directory = root, directory
    self._runs: dict[str, MeasuredRun] = {}
    self._tables: dict[tuple[str, ...], list[table.Table]] = {}

  def table(self, name: str, runs: Sequence[str]) -> str:
    """A table of a report of these runs, as Markdown."""
    of, key = self._study(runs), tuple(runs)
    if key not in self._tables:  # The tests of a study take their time.
      self._tables[key] = tables.tables(of, significance.changes(of))
    found = _named(name, self._tables[key], 'table', runs)
    return table_forms.markdown(found).strip()

  def figure(self, name: str, runs: Sequence[str]) -> str:
    """A figure of a report of these runs."""
    found = write.figures(self._study(runs))
    return self._picture(_named(name, found, 'figure', runs))

  def training(self, name: str, workdir: str) -> str:
    """A figure of a training."""
    found = training_figures.figures(self._root / workdir)
    return self._picture(_named(name, found, 'figure', [workdir]))

  def trained(self, workdir: str, name: str) -> str:
    """A score of the networks that a training kept, in per cent, or after how
    many examples they were: 'iteration'."""
    found = training_figures.best(self._root / workdir)
    if name == 'iteration':
      return f'{found[name]:,}'
    if name not in training_figures.SCORES:
      raise ValueError(
        f'{workdir}: {name} is no score of a training; these are iteration, '
        f'{", ".join(training_figures.SCORES)}.'
      )
    return table.number(100 * found[name])

  def value(
    self,
    run: str,
    task: str,
    metric: str,
    num_edits: int,
    digits: int = 1,
    interval: bool = False,
  ) -> str:
    """One number of a run's results, with its 95 % interval if wanted."""
    row = self._run(run).row(task, metric, num_edits)
    if row is None:
      raise ValueError(
        f'{run}: {metric} of {task} was not measured after {num_edits} edits; '
        f'its results are in {self._run(run).path}.'
      )
    text = table.number(row.value, digits)
    if not interval:
      return text
    if row.ci_low is None or row.ci_high is None:
      raise ValueError(f'{run}: {metric} of {task} has no interval.')
    low, high = (table.number(x, digits) for x in (row.ci_low, row.ci_high))
    return f'{text} ({low}–{high})'

  def _run(self, name: str) -> MeasuredRun:
    if name not in self._runs:
      run = measured_run.read_run(self._root / name)
      if not run.is_finished:
        raise ValueError(
          f'{run.path} has {run.edits_made} of {run.num_edits} edits, or was '
          'not measured after the last. The command of the run goes on with it.'
        )
      self._runs[name] = run
    return self._runs[name]

  def _study(self, names: Sequence[str]) -> Study:
    if isinstance(names, str):
      raise ValueError(f'Runs are a list, as [{names!r}], not {names!r}.')
    return study([self._run(name) for name in names])

  def _picture(self, figure: Figure) -> str:
    path = f'{self._directory}/{figure.name}_{len(self.pictures) + 1}.png'
    self.pictures[path] = draw.save(draw.draw(figure), 'png')
    title, caption = map(
      table_forms.markdown_text, (figure.title, figure.caption)
    )
    return f'![{title}](<{path}>)\n\n{caption}'


def _named(name, found, kind, runs):
  by_name = {thing.name: thing for thing in found}
  if name not in by_name:
    raise ValueError(
      f'{", ".join(runs)} do not fill {kind} {name}; they fill '
      f'{", ".join(by_name) or "none"}.'
    )
  return by_name[name]
