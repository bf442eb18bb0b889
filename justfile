# The same commands that .ci/run uses.

default: check

check:
    cargo clippy --workspace --all-targets -- -D warnings
    cargo fmt --all --check

test:
    cargo test --workspace

quickstart:
    cargo run --release -- quickstart

ci:
    bash .ci/run
