"""Options that several commands have."""


def several(parser, option, known, usual=None, more="", kind=str):
    """Adds an option that takes one name or more.

    Args:
      parser: of the command, an ``argparse.ArgumentParser``.
      option: its name, in the plural.
      known: the names that there are.
      usual: those that are taken where it is not given; None for all.
      more: what its help says after the names.
      kind: the type of a name.
    """
    known = list(known)
    parser.add_argument(
        f"--{option}",
        nargs="+",
        choices=known,
        default=known if usual is None else list(usual),
        type=kind,
        metavar="NAME",
        help=f"of {', '.join(map(str, known))}{more}",
    )
