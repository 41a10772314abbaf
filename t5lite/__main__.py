"""`python -m t5lite COMMAND` is `t5lite COMMAND`."""

from t5lite.cli.main import main

if __name__ == "__main__":
    main()
