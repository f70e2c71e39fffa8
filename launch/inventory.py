"""What tasks there are, and what of their data is at hand."""

import hashlib
import inspect
from collections.abc import Sequence

from me_jax import files
from me_jax.data.sources import DataSources
from me_jax.evals import registry
from me_jax.evals.task import TaskContext
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


def data_table(names: Sequence[str], sources: DataSources) -> str:
  """One line per task: items found and expected, a hash of them, or what is
  missing."""
  # Any tokenizer: prompts are made to read what they are made from.
  context = TaskContext(sources=sources, tokenizer=byte_tokenizer())
  lines = [f'{"task":20} {"items":>7} {"of":>7}  sha256']
  for name in names:
    expected = registry.OFFICIAL_ITEMS.get(registry.base_name(name), 0)
    task = registry.make_task(name, context)
    try:
      items = task.items()
      # Exemplars are data, too.
      for item in {item.group: item for item in items}.values():
        task.request(item)
    except (FileNotFoundError, ValueError) as e:
      lines.append(f'{name:20} {"-":>7} {expected:7,}  {e}')
      continue
    digest = hashlib.sha256()
    for item in items:
      content = [item.id, item.group, item.fields]
      digest.update(files.canonical_json(content).encode())
    lines.append(
      f'{name:20} {len(items):7,} {expected:7,}  {digest.hexdigest()[:16]}'
    )
  return '\n'.join(lines)
