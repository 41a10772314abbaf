# Makes a fresh TPU VM ready; a launch with --setup=FILE reads that in its place. It is sourced by
# bash on every worker before the command. $T5LITE_WHEEL is the wheel that was shipped. What it must
# leave is a t5lite on the PATH; it may mount a file system and export variables too.
export PATH="$HOME/.local/bin:$PATH"
environment=$HOME/.t5lite-env
if [ ! -e "$environment/ready" ]; then
    # The machines' own Python is too old.
    command -v uv || python3 -m pip install --quiet --user uv
    uv venv --quiet --clear --python 3.12 "$environment" &&
        uv pip install --quiet --python "$environment/bin/python" "$T5LITE_WHEEL[tpu]" &&
        touch "$environment/ready"
fi
export PATH="$environment/bin:$PATH"
command -v t5lite > /dev/null
