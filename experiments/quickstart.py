r"""Ten facts into SmolLM2-135M, one after another; needs no download.

    python -m launch.run --config=experiments/quickstart.py \
      --workdir=runs/quickstart

The facts, the text of the perplexity and, written by the model itself, the
text of the second moment come with the package. Expect: every fact is learned
right after its edit (individual reliability above 90), later edits take some
of it back, and the perplexity of plain text rises with each edit.
"""

from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` may be 'model=...'."""
  chosen = config.parse_arg(arg, model='smollm2_135m')
  return config.RunConfig(
    model=config.ModelSource(name=chosen['model']),
    method=config.RomeConfig(layer=5),
    facts=config.FactsConfig(name='sample'),
    second_moment=config.SecondMomentConfig(
      corpus='generated', n_samples=0, min_tokens=15_360, max_length=128
    ),
    num_edits=10,
    eval_steps=(0, 1, 5, 10),
    tasks=('sample_ppl',),
  )
