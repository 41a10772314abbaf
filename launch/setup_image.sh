# Makes a pod ready whose image has all but t5lite itself; a launch with --setup=FILE reads that in its
# place. As setup.sh, it is sourced by bash and leaves a t5lite on the PATH.
site=$HOME/.t5lite-site
python3 -m pip install --quiet --no-deps --upgrade --target "$site" "$T5LITE_WHEEL"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
command -v t5lite > /dev/null
