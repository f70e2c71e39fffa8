"""A template becomes a document that says what was measured."""

import pytest
from reporting_workdirs import Made, make, rome

from me_jax.reporting import document
from me_jax.reporting.measured_run import read_run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  made = lambda layer: Made(method=rome(layer=layer), edits=(0, 1, 4))
  return {
    name: read_run(make(root / name, made(layer)))
    for name, layer in (('shallow', 5), ('deep', 25))
  }


def _fill(tmp_path, runs, text):
  template = tmp_path / 'study.template.md'
  template.write_text(text)
  return document.make(template, tmp_path / 'out' / 'study.md', runs)


def test_numbers_and_tables_are_those_of_the_runs(tmp_path, runs):
  row = runs['deep'].row('wikitext_ppl', 'ppl', 4)
  text = (
    "Now {{ value('deep', 'wikitext_ppl', 'ppl', 4, digits=2) }}.\n\n"
    "{{ table('table2', ['shallow', 'deep']) }}\n"
  )
  (path,) = _fill(tmp_path, runs, text)
  found = path.read_text()
  assert found.startswith(f'Now {row.value:.2f}.\n\n### The facts by method')
  assert '| ROME, layer 5 | 4 |' in found and '| ROME, layer 25 | 4 |' in found
  assert found.endswith('.\n')


def test_a_figure_lies_beside_the_document(tmp_path, runs):
  paths = _fill(tmp_path, runs, "{{ figure('facts', ['shallow']) }}")
  text = paths[0].read_text()
  assert paths[1].read_bytes().startswith(b'\x89PNG')
  assert text.endswith(f'({paths[1].relative_to(paths[0].parent)})')


@pytest.mark.parametrize(
  'text, error',
  [
    ("{{ value('rome', 'a', 'b', 1) }}", "'rome'; there are shallow, deep"),
    ("{{ value('deep', 'mmlu', 'score', 4) }}", 'score of mmlu was not measur'),
    (
      "{{ table('table6', ['deep']) }}",
      'not fill table table6; they fill',
    ),
    ("{{ figure('none', ['deep']) }}", 'not fill figure none; they fill'),
    ('{{ runs }}', "'runs' is undefined"),
    ('a\n{{ value( }}', 'template.md, line 2'),
  ],
)
def test_what_was_not_measured_is_an_error(tmp_path, runs, text, error):
  with pytest.raises(ValueError, match=error):
    _fill(tmp_path, runs, text)
  assert not (tmp_path / 'out').exists()
