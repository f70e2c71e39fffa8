"""What tasks there are, and what of their data is at hand."""

import inspect
from collections.abc import Sequence

from me_jax.data.sources import DataSources
from me_jax.evals import known_data, registry
from me_jax.evals.task import TaskContext, fingerprint
from me_jax.models.tokenizer import byte_tokenizer


def task_table() -> str:
  """One line per task: name, mode, protocol, items, what it is."""
  context = TaskContext(sources=DataSources(allow_hub=False))
  lines = [f'{"task":20} {"mode":4} {"protocol":34} {"items":>7}  what']
  for name, factory in registry.TASKS.items():
    task = factory(context)
    items = registry.OFFICIAL_ITEMS.get(name)
    what = inspect.getdoc(factory).partition('\n')[0]
    lines.append(
      f'{name:20} {task.mode:4} {task.version:34} '
      f'{f"{items:,}" if items else "":>7}  {what}'
    )
  lines.append(
    'A window other than 2,048 tokens is part of the name: bbh@4096.'
  )
  return '\n'.join(lines)


def data_table(names: Sequence[str], sources: DataSources) -> tuple[str, bool]:
  """One line per task: items found and expected, a hash of all that is asked
  and whether it is that of the public files, or what is missing.

  Returns:
    The table, and whether nothing is missing.
  """
  # Any tokenizer: prompts are made to read what they are made from.
  context = TaskContext(sources=sources, tokenizer=byte_tokenizer())
  lines = [f'{"task":20} {"items":>7} {"of":>7}  {"hash":16}  data']
  complete = True
  for name in names:
    expected = registry.OFFICIAL_ITEMS.get(registry.base_name(name), 0)
    task = registry.make_task(name, context)
    try:
      items, digest = task.items(), fingerprint(task)
    except (FileNotFoundError, ValueError) as e:
      complete = False
      lines.append(f'{name:20} {"-":>7} {expected:7,}  {e}')
      continue
    known = known_data.HASHES.get(name, {})
    lines.append(
      f'{name:20} {len(items):7,} {expected or len(items):7,}  {digest}  '
      f'{known.get(digest, "not known here")}'
    )
  return '\n'.join(lines), complete
