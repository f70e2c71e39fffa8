"""The page and its files."""

import html.parser
import json
import re

import pytest
from reporting_workdirs import Made, evaluation, make, rome

from me_jax.reporting import write
from me_jax.reporting.measured_run import read_run

EVIL = '<script>alert("x")</script>'


class _Page(html.parser.HTMLParser):
  """Tags, their addresses and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.addresses, self.text, self.ids = [], [], [], []
    self.feed(text)
    self.text = ' '.join(' '.join(self.text).split())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.addresses += [
      attrs[k] for k in ('src', 'href') if attrs.get(k) is not None
    ]

  def handle_data(self, data):
    self.text.append(data)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A report of an unfinished run and an evaluation; the run's model, device
  and facts are hostile."""
  root = tmp_path_factory.mktemp('report')
  run = make(root / '<i>run', Made(method=rome(), model=EVIL, edits=(0, 1, 4)))
  config = json.loads((run / 'config.json').read_text())
  config['notes']['device'] = EVIL
  config['identity']['config']['facts']['name'] = EVIL
  (run / 'config.json').write_text(json.dumps(config))
  runs = [read_run(run), read_run(evaluation(root / 'eval', EVIL))]
  paths = write.write(runs, root / 'out')
  return root / 'out', paths


@pytest.fixture(scope='module')
def page(written):
  out, _ = written
  return _Page((out / 'index.html').read_text())


def test_all_files_are_written(written):
  out, paths = written
  assert sorted(paths) == sorted(p for p in out.rglob('*') if p.is_file())
  names = {str(p.relative_to(out)) for p in paths}
  assert {'index.html', 'tables/table1.md', 'tables/table2.tex'} <= names
  assert 'p_vs_t0' in (out / 'tables' / 'differences.csv').read_text()
  figures = {n.rpartition('.')[0] for n in names if n.startswith('figures/')}
  for figure in figures:
    assert {f'{figure}.{kind}' for kind in ('png', 'pdf', 'csv')} <= names
  assert not list(out.rglob('*.partial'))


def test_the_page_needs_no_network_and_no_script(written, page):
  out, _ = written
  assert 'script' not in page.tags and 'link' not in page.tags
  for address in page.addresses:
    assert address.startswith(('data:image/svg+xml;base64,', '#', 'figures/'))
    if address.startswith('figures/'):
      assert (out / address).is_file()
    if address.startswith('#'):
      assert address[1:] in page.ids
  text = (out / 'index.html').read_text()
  assert not re.search(r'(url\(|@import|https?://)', text)
  assert '<meta name="viewport"' in text


def test_what_comes_from_files_is_text(written, page):
  out, _ = written
  assert page.text.count(EVIL) > 5
  assert 'i' not in page.tags
  assert EVIL not in (out / 'index.html').read_text()
  for path in out.glob('tables/*.md'):
    assert '<script' not in path.read_text().replace('\\<', '')


def test_the_page_begins_with_sentences(page):
  assert page.text.index('What happened') < page.text.index('ROME was to write')
  assert page.text.index('The run is not finished: 4 of 10') < page.text.index(
    'General ability by method'
  )


def test_the_page_says_what_was_run(page):
  text = page.text
  assert 'not finished, 4 of 10 edits' in text and 'time spent editing' in text
  assert 'second_moments/5' in text and 'momentmoment' in text
  assert 'method/layer' in text and '0.10.2' in text
  # Of 1.5 s and the number of each step.
  assert '16.0 s' in text


def test_the_page_says_what_is_missing_and_how_to_make_it(page):
  text = page.text
  assert 'Figure 8 Needs a run with saliency (task saliency):' in text
  assert '--config=experiments/figure8.py:model=' in text
  assert 'Table 1 Needs' not in text and 'Table 6 Needs' in text


def test_nothing_to_report_is_said(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  (path / 'results.jsonl').unlink()
  with pytest.raises(ValueError, match='Nothing was measured yet in .*run'):
    write.write([read_run(path)], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
