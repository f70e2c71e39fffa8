"""A report as files."""

import pathlib
from collections.abc import Sequence

from me_jax import files
from me_jax.reporting import (
  analysis_figures,
  diagnostic_figures,
  draw,
  missing,
  page,
  provenance,
  run_figures,
  score_figures,
  significance,
  summary,
  table_forms,
  tables,
)
from me_jax.reporting.figure import Figure, to_csv
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study, study


def write(
  runs: Sequence[MeasuredRun], output: files.PathLike
) -> list[pathlib.Path]:
  """Writes the page, the tables and the figures; returns the files.

  Args:
    runs: What was measured.
    output: The directory; files of an earlier report are replaced.

  Raises:
    ValueError: There is nothing to report, or scores are malformed.
    OSError: The directory cannot be written.
  """
  if not any(run.rows for run in runs):
    raise ValueError(
      f'Nothing was measured yet in {", ".join(str(r.path) for r in runs)}. '
      'The rows come with the first measured step.'
    )
  of = study(runs)
  changes = significance.changes(of)
  found = tables.tables(of, changes)
  drawn = [(figure, draw.draw(figure)) for figure in figures(of)]
  made = [t.name for t in found] + [figure.name for figure, _ in drawn]
  contents: dict[str, str | bytes] = {}
  for table in found:
    contents[f'tables/{table.name}.md'] = table_forms.markdown(table)
    contents[f'tables/{table.name}.tex'] = table_forms.latex(table)
    contents[f'tables/{table.name}.csv'] = to_csv(table_forms.rows(table))
  images = []
  for figure, picture in drawn:
    for kind in ('png', 'pdf'):
      contents[f'figures/{figure.name}.{kind}'] = draw.save(picture, kind)
    contents[f'figures/{figure.name}.csv'] = to_csv(figure.rows())
    images.append((figure, draw.save(picture, 'svg')))
  contents['index.html'] = page.page(
    title(of),
    paragraphs=summary.summary(of, changes),
    tables=found,
    figures=images,
    provenance=provenance.tables(of),
    missing=missing.missing(of, made),
  )
  paths = []
  for name, content in contents.items():
    paths.append(pathlib.Path(output) / name)
    files.write_atomic(paths[-1], content)
  return paths


def figures(of: Study) -> list[Figure]:
  """Every figure that the measurements fill, in the order of the page."""
  kinds = (run_figures, score_figures, analysis_figures, diagnostic_figures)
  return [f for kind in kinds for f in kind.figures(of) if f is not None]


def title(of: Study) -> str:
  """'What 100 edits did to smollm2_135m'."""
  models = ' and '.join(of.models)
  if not of.runs:
    return f'{models} as it is'
  edits = max(run.edits_made for run in of.runs)
  return f'What {edits:,} edits did to {models}'
