# One line each, no logic: what a target does is in the script or the crate it calls.
.PHONY: setup demo check test sim bench soak supply

setup: ## Fetch nats-server and ONNX Runtime into the cache, unpack the pictures; does nothing when they are there.
	deploy/fetch-runtime.sh && deploy/unpack-fixtures.sh

demo: setup ## Build, publish 2,000 labelled images through a site, print what happened.
	cargo run --release --locked --package tributary -- demo

check: setup ## Formatting, scripts, spelling, dependencies, clippy, rustdoc and unit tests.
	deploy/check.sh

test: setup ## Build everything and run every test against real servers, an S3 server and cameras among them.
	deploy/fetch-runtime.sh --tests && deploy/fetch-cameras.sh && cargo build --workspace --locked && cargo test --workspace --exclude sim --locked
	# By themselves: what they turn on must not be in the binary that the others test.
	cargo test --package streams --package sim --locked

sim: setup ## Thousands of seeds of simulated faults for each scenario; TRIBUTARY_SEED=N runs one alone.
	TRIBUTARY_SEEDS=5000 cargo test --locked --package sim -- --nocapture

bench: setup ## Measure the pipeline, policies, training, merging, replaying, scaling and cameras (docs/benchmarks.md).
	cargo build --release --locked --package tributary --package tributary-bench
	cargo run --release --locked --package tributary-bench -- recognize
	cargo run --release --locked --package tributary-bench -- policy
	cargo run --release --locked --package tributary-bench -- train
	cargo run --release --locked --package tributary-bench -- aggregate
	cargo run --release --locked --package tributary-bench -- federated
	cargo run --release --locked --package tributary-bench -- rounds
	cargo run --release --locked --package tributary-bench -- replay
	cargo run --release --locked --package tributary-bench -- scale
	deploy/fetch-cameras.sh && cargo run --release --locked --package tributary-bench -- cameras

soak: setup ## Long fault runs, millions of bent inputs, and power cuts; the latter need root and loop devices.
	TRIBUTARY_HOSTILE_TURNS=1000000 cargo test --locked --package tributary-tests --test hostile -- --nocapture --test-threads 1
	TRIBUTARY_HOSTILE_TURNS=1000000 cargo test --locked --workspace --lib --bins bent -- --nocapture
	cargo build --workspace --locked && cargo test --locked --package tributary-tests --test e2e -- --ignored --nocapture --test-threads 1 --skip wire_golden

supply: setup ## Check licences, origins and known weaknesses of all dependencies; list what the program is made of (docs/security.md).
	deploy/supply.sh
