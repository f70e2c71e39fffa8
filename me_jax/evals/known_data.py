"""Hashes of the public data of each task, as `task.fingerprint` gives them with
the tokenizer of bytes: of all items and a prompt of each group. A change of how
prompts are made changes them, too."""

from collections.abc import Mapping

_PUBLIC = 'the public files'

# By task: what data has the hash.
HASHES: Mapping[str, Mapping[str, str]] = {
  'mmlu': {'f86ae6439a737d7a': _PUBLIC},
  'mbpp': {'3d19c9ee1ed7e6e1': _PUBLIC},
  'math': {'4a070d8988dc3765': '1,000 of the public problems'},
  'bbh': {'ca9b1735cde36957': _PUBLIC},
  'c3': {'3bfaab54f85d729b': _PUBLIC},
  'commonsenseqa': {'1fb3e0eafa45a92e': _PUBLIC},
  'axb': {'8c89183565f2a6d2': _PUBLIC},
  'commonsenseqa_cloze': {'5358bd99b62b12d6': _PUBLIC},
  'commonsenseqa_whole': {'b720e419c1500bcc': _PUBLIC},
  'math_own_exemplars': {'cf4f16650a564949': '1,000 of the public problems'},
  'math_plain': {'1ec616ff263c5d65': '1,000 of the public problems'},
  'mmlu_cloze': {'9745cda6d30abe4a': _PUBLIC},
  'sample_ppl': {'c44def6d990d131a': 'the text of this package'},
  'sst2_icl': {'5d2199da2b0afcb8': 'the public files, 10,000 of train'},
  'tydiqa_goldp': {'8b698747ea3dbb74': '100 public items a language'},
  'wikitext_ppl': {'fd79838c34f8ba34': _PUBLIC},
}
