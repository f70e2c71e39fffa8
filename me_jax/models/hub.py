"""Models published on the Hugging Face hub."""

import pathlib

# Never pickles, never code.
_FILES = ('*.json', '*.safetensors', '*.jinja', 'tokenizer.model')


def snapshot(repo_id: str, *, weights: bool = True) -> pathlib.Path:
  """A local directory with the files of `repo_id`, downloaded if need be.

  Args:
    repo_id: 'organisation/name'.
    weights: Whether the safetensors are wanted, too.

  Raises:
    FileNotFoundError: There is no such model, no permission or no network.
  """
  # Not needed by local models.
  import huggingface_hub

  try:
    directory = huggingface_hub.snapshot_download(
      repo_id,
      allow_patterns=list(_FILES),
      # Copies in other layouts, such as original/consolidated.safetensors.
      ignore_patterns=['*/*', 'consolidated*']
      + ([] if weights else ['*.safetensors']),
    )
  # What comes up is the HTTP library's, which differs between versions.
  except Exception as e:
    reason = str(e).strip().split('\n')[0] or type(e).__name__
    raise FileNotFoundError(
      f'Could not get {repo_id!r} from the Hugging Face hub ({reason}). If it '
      'needs permission, ask for it on its page and log in (hf auth login). A '
      'local directory with the same files can be given instead, as '
      '--config.model.path=DIRECTORY.'
    ) from e
  return pathlib.Path(directory)
