# Sets a fresh TPU VM up; a launch with --setup=FILE uses that file instead. bash sources it on every
# worker before the command. $T5LITE_WHEEL is the wheel that the launch shipped. Afterwards t5lite must
# be on the PATH; the script may also mount a file system and export variables.
export PATH="$HOME/.local/bin:$PATH"
environment=$HOME/.t5lite-env
if [ ! -e "$environment/ready" ]; then
    # The machine's own Python is too old.
    command -v uv || python3 -m pip install --quiet --user uv
    uv venv --quiet --clear --python 3.12 "$environment" &&
        uv pip install --quiet --python "$environment/bin/python" "$T5LITE_WHEEL[tpu]" &&
        touch "$environment/ready"
fi
export PATH="$environment/bin:$PATH"
command -v t5lite > /dev/null
