"""The parser that all commands have in common."""

import argparse


def command_parser(name: str, usage: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Of `distcnn NAME USAGE`; options are not abbreviated, as `--section.key` settings may follow them."""
    return argparse.ArgumentParser(
        f"distcnn {name}",
        usage=f"distcnn {name} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
