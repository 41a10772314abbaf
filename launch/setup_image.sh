# Sets a pod up whose image holds everything but t5lite itself; a launch with --setup=FILE uses that
# file instead. As setup.sh, it is sourced by bash, and afterwards t5lite must be on the PATH.
site=$HOME/.t5lite-site
python3 -m pip install --quiet --no-deps --upgrade --target "$site" "$T5LITE_WHEEL"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
command -v t5lite > /dev/null
