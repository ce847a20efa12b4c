"""What shells offer for the name of a study and for its trials: functions of theirs, since Python takes long to start.

Each looks into the root that stands on the line, else into `mlruns`, and only at names of files.

Names in a root may be anybody's: bash would expand what `compgen -W` is given, so it gets no other than plain ones.
"""

from __future__ import annotations

_BASH = r"""
_prunefront_root() {
  local place root=mlruns
  for (( place = 1; place < ${#COMP_WORDS[@]}; place++ )); do
    if [[ ${COMP_WORDS[place]} == --root ]]; then
      root=${COMP_WORDS[place + 1]-}
      [[ $root == "=" ]] && root=${COMP_WORDS[place + 2]-}
    fi
  done
  printf '%s' "${root/#\~\//$HOME/}"
}
_prunefront_studies() {
  local file root
  root=$(_prunefront_root)
  for file in "$root"/*/study.json; do
    file=${file%/study.json} file=${file##*/}
    [[ $file == *[!A-Za-z0-9._-]* ]] || compgen -W "$file" -- "$1"
  done
} 2>/dev/null
_prunefront_trials() {
  local file number root word
  root=$(_prunefront_root)
  compgen -W "best knee smallest" -- "$1"
  for word in "${COMP_WORDS[@]:2}"; do
    [[ $word == [A-Za-z0-9_]* && -f $root/$word/study.json ]] || continue
    for file in "$root/$word"/journal/trial-*.json; do
      number=${file##*/trial-} number=${number%.json}
      [[ $number == *[!0-9]* ]] || compgen -W "$(( 10#$number ))" -- "$1"
    done
    return
  done
} 2>/dev/null
"""
_ZSH = r"""
_prunefront_root() {
  emulate -L zsh
  local place root=mlruns
  for (( place = 1; place <= $#words; place++ )); do
    case $words[place] in
      --root) root=${(Q)words[place + 1]} ;;
      --root=*) root=${(Q)words[place]#--root=} ;;
    esac
  done
  REPLY=${root/#\~\//$HOME/}
}
_prunefront_studies() {
  emulate -L zsh
  local REPLY
  local -a names
  _prunefront_root
  names=( $REPLY/*/study.json(N:h:t) )
  compadd -a names
}
_prunefront_trials() {
  emulate -L zsh
  local REPLY word file
  local -a names
  _prunefront_root
  names=( best knee smallest )
  for word in $words[2,-1]; do
    [[ $word == [A-Za-z0-9_]* && -f $REPLY/$word/study.json ]] || continue
    for file in $REPLY/$word/journal/trial-<->.json(N:t:r); do
      names+=( $(( 10#${file#trial-} )) )
    done
    break
  done
  compadd -a names
}
"""
_FISH = r"""
function _prunefront_root
  set -l root mlruns
  set -l tokens (commandline -op)
  for place in (seq (count $tokens))
    switch $tokens[$place]
      case --root
        set root $tokens[(math $place + 1)]
      case '--root=*'
        set root (string replace -- --root= '' $tokens[$place])
    end
  end
  string replace -r '^~/' "$HOME/" -- $root
end
function _prunefront_studies
  set -l root (_prunefront_root)
  for file in $root/*/study.json
    string split -r -m 2 / -- $file | tail -n 2 | head -n 1
  end
end
function _prunefront_trials
  set -l root (_prunefront_root)
  printf '%s\n' best knee smallest
  set -l tokens (commandline -op)
  for word in $tokens[3..-1]
    string match -qr '^[A-Za-z0-9_]' -- $word; and test -f "$root/$word/study.json"; or continue
    for file in $root/$word/journal/trial-*.json
      string match -rg '/trial-0*([0-9]+)\.json$' -- $file
    end
    return
  end
end
"""
PREAMBLE = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""Shell -> the functions, which the words below call."""


def _called(name: str) -> dict[str, str]:
    return {"bash": name, "zsh": name, "fish": f"({name})"}


STUDIES = _called("_prunefront_studies")
TRIALS = _called("_prunefront_trials")
