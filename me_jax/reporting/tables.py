"""Every table that the measurements of a study fill."""

from collections.abc import Iterator

from me_jax.reporting import (
  grace_tables,
  other_tables,
  paper_tables,
  text_tables,
)
from me_jax.reporting.significance import Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import Table


def tables(study: Study, changes: Changes) -> list[Table]:
  """The tables, in the order in which they are read."""
  return [table for table in _all(study, changes) if table is not None]


def _all(study: Study, changes: Changes) -> Iterator[Table | None]:
  yield paper_tables.benchmarks(study, changes)
  yield other_tables.differences(study, changes)
  yield other_tables.chance_levels(study)
  yield paper_tables.facts(study, changes)
  yield text_tables.adjusted_perplexity(study)
  yield text_tables.text_quality(study)
  yield grace_tables.by_radius(study, changes)
  yield grace_tables.by_layer(study, changes)
  yield other_tables.weight_drift(study)
  yield other_tables.saliency(study)
  yield paper_tables.paper_benchmarks(study)
  yield paper_tables.paper_facts(study)
  yield text_tables.paper_adjusted_perplexity(study)
  yield from grace_tables.paper_tables(study)
