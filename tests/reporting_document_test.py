"""A template becomes a document that says what was measured."""

import pytest
from reporting_workdirs import Made, make, rome

from me_jax import files
from me_jax.reporting import document, training_figures
from me_jax.reporting.measured_run import read_run


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  for name, layer in (('shallow', 5), ('deep', 25)):
    make(
      root / name, Made(method=rome(layer=layer), edits=(0, 1, 4), num_edits=4)
    )
  return root


def _fill(tmp_path, root, text):
  template = tmp_path / 'study.template.md'
  template.write_text(text)
  return document.make(template, tmp_path / 'out' / 'study.md', root)


def test_numbers_and_tables_are_those_of_the_runs(tmp_path, root):
  row = read_run(root / 'deep').row('wikitext_ppl', 'ppl', 4)
  text = (
    "Now {{ value('deep', 'wikitext_ppl', 'ppl', 4, digits=2) }}.\n\n"
    "{{ value('deep', 'edit', 'sequential_reliability', 4, interval=True) }}\n"
    "{{ table('table2', ['shallow', 'deep']) }}\n"
  )
  (path,) = _fill(tmp_path, root, text)
  found = path.read_text()
  reliability = '90.0 (80.0–100.0)\n'
  assert found.startswith(f'Now {row.value:.2f}.\n\n{reliability}### The facts')
  assert '| ROME, layer 5 | 4 |' in found and '| ROME, layer 25 | 4 |' in found
  assert found.endswith('.\n')


def test_a_figure_lies_beside_the_document(tmp_path, root):
  paths = _fill(tmp_path, root, "{{ figure('facts', ['shallow']) }}")
  text = paths[0].read_text()
  assert paths[1].read_bytes().startswith(b'\x89PNG')
  assert f'](<{paths[1].relative_to(paths[0].parent)}>)\n\nTarget tok' in text


def test_the_course_of_a_training(tmp_path):
  scores = {'reliability': 0.5, 'generalization': 0.4, 'locality': 0.9}
  losses = {'loss': 0.3, 'nll': 2.0, 'kl': 0.1}
  files.write_jsonl(
    tmp_path / 'mend' / 'curve.jsonl',
    [
      {'part': part, 'iteration': iteration, **losses}
      | (scores if part == 'validation' else {'reliability': iteration / 10})
      for part, iteration in (
        ('train', 1),
        ('train', 2),
        ('validation', 2),
        ('train', 3),
        ('train', 4),
        ('validation', 4),
        ('train', 5),
      )
    ],
  )
  text = (
    "{{ training('training_loss', 'mend') }} {{ trained('mend', 'iteration') }}"
    " {{ trained('mend', 'locality') }}"
  )
  paths = _fill(tmp_path, tmp_path, text)
  assert paths[0].read_text().endswith(' 2 90.0')
  with pytest.raises(ValueError, match='recall is no score of a training'):
    _fill(tmp_path, tmp_path, "{{ trained('mend', 'recall') }}")
  assert paths[1].read_bytes().startswith(b'\x89PNG')
  chart = training_figures.figures(tmp_path / 'mend')[0]
  found = {
    (c.panel, c.label): dict(zip(c.x, c.y, strict=True)) for c in chart.curves
  }
  assert found['right, own prompts', 'validation'] == {2: 50.0, 4: 50.0}
  assert found['right, own prompts', 'training'] == pytest.approx(
    {2: 15.0, 4: 35.0}
  )
  assert ('right, other wordings', 'training') not in found
  (tmp_path / 'mend' / 'curve.jsonl').unlink()
  with pytest.raises(FileNotFoundError, match='curve.jsonl is not there'):
    _fill(tmp_path, tmp_path, "{{ training('training_loss', 'mend') }}")


@pytest.mark.parametrize(
  'text, error',
  [
    ("{{ value('deep', 'mmlu', 'score', 4) }}", 'score of mmlu was not measur'),
    (
      "{{ table('table6', ['deep']) }}",
      'not fill table table6; they fill',
    ),
    ("{{ figure('none', ['deep']) }}", 'not fill figure none; they fill'),
    ('{{ runs }}', "'runs' is undefined"),
    ("{{ figure('facts', 'deep') }}", r"list, as \['deep'\], not 'deep'"),
    ("{{ value('deep', 'mmlu') }}", 'template.md: .*missing'),
    (
      "{{ value('deep', 'wikitext_ppl', 'ppl', 4, interval=True) }}",
      'ppl of wikitext_ppl has no interval',
    ),
    ('a\n{{ value( }}', 'template.md, line 2'),
  ],
)
def test_what_was_not_measured_is_an_error(tmp_path, root, text, error):
  with pytest.raises(ValueError, match=error):
    _fill(tmp_path, root, text)
  assert not (tmp_path / 'out').exists()


def test_a_run_that_is_not_there(tmp_path, root):
  with pytest.raises(FileNotFoundError, match='none is not a directory'):
    _fill(tmp_path, root, "{{ value('none', 'mmlu', 'score', 4) }}")


def test_a_run_that_is_not_finished(tmp_path):
  make(tmp_path / 'half', Made(method=rome(), edits=(0, 1, 4)))
  with pytest.raises(ValueError, match='half has 4 of 10 edits'):
    _fill(tmp_path, tmp_path, "{{ table('table2', ['half']) }}")


def test_a_document_does_not_replace_its_template(tmp_path, root):
  template = tmp_path / 'a.md'
  template.write_text('text')
  for output in (template, tmp_path / 'b'):
    with pytest.raises(ValueError, match='another Markdown file'):
      document.make(template, output, root)
  assert template.read_text() == 'text'
