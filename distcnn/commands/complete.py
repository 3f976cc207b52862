"""`distcnn complete SHELL`: a completion script for commands, options, the config's keys and their choices."""

from distcnn.commands.parser import Handler, Options, Parser, command_parsers
from distcnn.config.keys import documented_keys

EPILOG = """examples:
  source <(distcnn complete bash)      in ~/.bashrc
  source <(distcnn complete zsh)       in ~/.zshrc, after compinit
"""
_SCRIPT = """_distcnn() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words="{commands}"
    elif [[ $current == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
    else
        case "$previous" in
{choices}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _distcnn distcnn
"""


def complete(parser: Parser) -> Handler:
    """Print a completion script for bash or zsh."""
    parser.epilog = EPILOG
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
    return run


def run(options: Options) -> None:
    """Print the script. Options with a fixed set of choices are completed with these, all others with file names."""
    keys = {f"--{key}": kind.split("|") if "|" in kind else [] for key, kind, *_ in documented_keys()}
    flags, choices = dict[str, list[str]](), {key: words for key, words in keys.items() if words}
    for name, parser in command_parsers():
        flags[name] = [*parser.flags(), *(keys if parser.takes_settings else ())]
        for flag, action in parser.flags().items():
            if action.choices:
                choices[flag] = [*map(str, action.choices)]
    script = _SCRIPT.format(commands=" ".join(flags), flags=_cases(flags), choices=_cases(choices))
    print(("autoload -U +X bashcompinit && bashcompinit\n" if options.shell == "zsh" else "") + script, end="")


def _cases(words: dict[str, list[str]]) -> str:
    return "\n".join(f'            {name}) words="{" ".join(found)}" ;;' for name, found in words.items())
