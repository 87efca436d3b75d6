"""`thinnet`, and `python -m service`: Ctrl-C is heeded before anything is imported that takes time."""

from service.interrupt import ends_on_interrupt


def main() -> None:
    """Run the command line."""
    with ends_on_interrupt():
        from service import cli
    cli.main()


if __name__ == "__main__":
    main()
