"""What was run: on what, with which settings, of which hashes."""

from typing import Any

from me_jax.progress import duration
from me_jax.reporting.labels import flat_settings
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study
from me_jax.reporting.table import Line, Table

_HASH = 12  # digits that are shown
_NO_VERSIONS = ('case_ids', 'facts_counts', 'device')


def tables(study: Study) -> list[Table]:
  """Runs, versions, hashes, settings that differ and settings in common."""
  runs = study.all_runs
  by_run = {study.labels[run]: run for run in runs}
  versions = {
    name: {k: str(v) for k, v in r.notes.items() if k not in _NO_VERSIONS}
    for name, r in by_run.items()
  }
  settings = {
    name: {k: _shown(v) for k, v in flat_settings(r.config).items()}
    for name, r in by_run.items()
  }
  names = dict.fromkeys(name for found in settings.values() for name in found)
  different = [
    name
    for name in names
    if len({found.get(name) for found in settings.values()}) > 1
  ]
  common = [name for name in names if name not in different]
  tables = [
    Table(
      name='runs',
      title='Runs',
      heads=('run',),
      columns=['directory', 'model', 'state', 'device', 'time spent editing'],
      lines=[Line((name,), _about(run)) for name, run in by_run.items()],
    ),
    _across('versions', 'Versions', versions),
    _across('hashes', 'Hashes', {n: _hashes(r) for n, r in by_run.items()}),
  ]
  if different:
    told = {
      name: {k: found.get(k, '') for k in different}
      for name, found in settings.items()
    }
    tables.append(_across('settings_different', 'Settings that differ', told))
  if common:
    one = next(iter(settings.values()))
    tables.append(
      Table(
        name='settings_common',
        title='Settings in common' if len(runs) > 1 else 'Settings',
        heads=('setting',),
        columns=['value'],
        lines=[Line((name,), [one[name]]) for name in common],
      )
    )
  return [table for table in tables if table.lines]


def seconds(run: MeasuredRun) -> float:
  """Time spent making edits."""
  return float(sum(record.get('seconds', 0.0) for record in run.records))


def _about(run: MeasuredRun) -> list[str]:
  state = 'finished' if run.is_finished else 'not finished'
  spent = seconds(run)
  return [
    ', '.join(map(str, (run.path, *run.evaluations))),
    run.model,
    f'{state}, {run.edits_made} of {run.num_edits} edits'
    if run.num_edits
    else 'as it is',
    str(run.notes.get('device', '')),
    duration(spent) if spent else '',
  ]


def _hashes(run: MeasuredRun) -> dict[str, str]:
  hashes = {k: v for k, v in run.identity.items() if k != 'config'}
  flat = flat_settings(hashes)
  return {name: str(value)[:_HASH] for name, value in flat.items()}


def _across(name: str, title: str, found: dict[str, dict[str, str]]) -> Table:
  """A line per name, a column per run; columns that agree are one."""
  names = dict.fromkeys(n for of_run in found.values() for n in of_run)
  groups: dict[tuple[str, ...], list[str]] = {}
  for run, of_run in found.items():
    groups.setdefault(tuple(of_run.get(n, '') for n in names), []).append(run)
  several = len(found) > 1 and len(groups) == 1
  heads = ['all runs'] if several else ['; '.join(g) for g in groups.values()]
  return Table(
    name=name,
    title=title,
    heads=('name',),
    columns=heads,
    lines=[
      Line((n,), [values[i] for values in groups]) for i, n in enumerate(names)
    ],
  )


def _shown(value: Any) -> str:
  if isinstance(value, list):
    return ', '.join(map(_shown, value)) or 'none'
  return 'none' if value in ('', None) else str(value)
