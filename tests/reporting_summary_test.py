import pytest
from reporting_workdirs import Made, evaluation, make, read, rome

from me_jax.reporting import significance, summary

ALL = ('weight_drift', 'adjusted_ppl')


def _said(*paths):
  study = read(*paths)
  found = summary.summary(study, significance.changes(study))
  return {p.title: ' '.join(p.sentences) for p in found}


@pytest.fixture
def said(tmp_path):
  """A function from what a run is made of to what is said of it."""

  def build(made):
    path = tmp_path / str(len(list(tmp_path.iterdir())))
    [text] = _said(make(path, made)).values()
    return text

  return build


def test_a_collapse_is_told(said):
  text = said(Made(method=rome(), analyses=ALL))
  assert 'ROME wrote 10 facts into tiny, one after another.' in text
  assert (
    'came out 99.0 % (89.0–100.0) right just after its own edit and 75.0 % '
    '(65.0–85.0) right after all 10 edits, so 24.0 points were lost to later '
    'edits; the unedited model says 20.0 % (10.0–30.0) of them anyway.'
  ) in text
  assert (
    'Of one benchmark, after 10 edits 1 fell by more than chance explains: '
    'CommonsenseQA from 60.0 to 5.0.'
  ) in text
  assert 'WikiText-2 perplexity: no longer finite' in text
  assert 'None of its answers after 10 edits is long enough' in text
  assert '90.0 % of its answers are “C”' in text
  assert 'with R = 0.9900.' in text
  assert 'warned of 2 of its 10 edit steps' in text


def test_nothing_happened_is_told_too(said):
  right = {0: 12, 1: 12, 4: 12, 10: 11}
  ppl = dict.fromkeys((0, 1, 4, 10), 20.0)
  method = {'name': 'grace', 'layer': 20, 'eps': 1.0}
  text = said(Made(method=method, right=right, ppl=ppl))
  assert 'No difference from the unedited model can be told' in text
  assert (
    'WikiText-2 perplexity: 20.00 before, 20.00 after 10 edits, the' in text
  )
  assert 'acts on 100.0 % of the facts as they were written, 50.0 %' in text
  assert 'keeping 10 keys' in text


def test_guessing_is_called_guessing(said):
  right = {0: 5, 1: 5, 4: 4, 10: 4}
  text = said(Made(method=rome(), right=right))
  assert 'is no better than guessing at CommonsenseQA' in text


def test_an_unfinished_run_is_called_one(said):
  text = said(Made(method=rome(), edits=(0, 1, 4)))
  assert 'ROME was to write 10 facts into tiny' in text
  assert (
    '4 of 10 edits are made and the last state measured is that after 4' in text
  )
  text = said(Made(method=rome(), edits=(0,)))
  assert '0 of 10 edits are made' in text and 'came out' not in text


def test_evaluations_are_told_after_the_runs(tmp_path):
  paths = (
    evaluation(tmp_path / 'eval'),
    make(tmp_path / 'run', Made(method=rome())),
  )
  said = _said(*paths)
  assert list(said) == ['ROME', 'tiny, unedited (eval)']
  assert said['tiny, unedited (eval)'] == (
    'Measured as it is: CommonsenseQA 60.0.'
  )


def test_several_runs_are_compared_first(tmp_path):
  grace = {'name': 'grace', 'layer': 20, 'eps': 1.0}
  same = dict.fromkeys((0, 1, 4, 10), 12)
  ppl = dict.fromkeys((0, 1, 4, 10), 20.0)
  found = _said(
    make(tmp_path / 'a', Made(method=rome())),
    make(tmp_path / 'b', Made(method=grace, right=same, ppl=ppl)),
    make(tmp_path / 'c', Made(method=rome(layer=9), edits=(0, 1))),
  )
  assert list(found)[0] == 'In short'
  text = found['In short']
  assert '2 of 3 runs are measured after 10 edits' in text
  assert 'there most with ROME, layer 5 and GRACE (75.0 %), all alike.' in text
  assert (
    'WikiText-2 perplexity grew most with ROME, layer 5 (∞ times) and least '
    'with GRACE (1.00 times).'
  ) in text
  assert 'explains. ROME, layer 5: 1 of 1; GRACE: 0 of 1.' in text


def test_a_run_alone_is_not_compared(tmp_path):
  assert list(_said(make(tmp_path / 'run', Made(method=rome())))) == ['ROME']


def test_of_one_step_nothing_is_called_later(said):
  made = Made(
    method={'name': 'memit', 'layers': [4, 5]}, edits=(0, 10), size=10
  )
  text = said(made)
  assert 'a fact comes out 75.0 % (65.0–85.0) right after the one step' in text
  assert 'later' not in text
