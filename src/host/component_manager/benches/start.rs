//! What a component costs at its start, beside a bare process of the same program. After divan's table it says the ratio,
//! which should be below 1.5: the median over many rounds, each of which starts both, so that what else the machine does
//! meets both alike.

fn main() {
    divan::main();
    #[cfg(target_os = "linux")]
    linux::say_ratio();
}

#[cfg(target_os = "linux")]
mod linux {
    use component_manager::realm_builder::{Capability, RealmBuilder, RealmInstance, Ref};
    use fidl::endpoints::create_proxy;
    use fidl_fuchsia_virtualization as fvirtualization;
    use fuchsia_async as fasync;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    const PROGRAM: &str = env!("CARGO_BIN_EXE_component_manager_test_components");
    const ECHO: &str = include_str!("../tests/components/meta/echo_elf.cml");
    const ROUNDS: usize = 100;

    /// Spawn, run `main`, wait.
    #[divan::bench(sample_count = 50, sample_size = 1)]
    fn bare_fork_and_exec() {
        use std::os::unix::process::CommandExt;
        let status = Command::new(PROGRAM).arg0("bare").stdin(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    /// A realm with one component, which is stopped.
    struct World {
        executor: fasync::LocalExecutor,
        realm: RealmInstance,
        _package: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let package = tempfile::tempdir().expect("a temporary directory");
            let bin = package.path().join("bin");
            std::fs::create_dir(&bin).expect("a directory");
            std::os::unix::fs::symlink(PROGRAM, bin.join("echo")).expect("a link");
            let mut executor = fasync::LocalExecutor::new();
            let realm = executor.run_singlethreaded(async {
                let mut builder = RealmBuilder::new();
                let echo =
                    builder.add_child_from_manifest("echo", ECHO, package.path()).expect("a child");
                let lifecycle = Capability::protocol::<fvirtualization::GuestLifecycleMarker>();
                builder.add_route(&lifecycle, &echo, &[Ref::Parent]).expect("a route");
                builder.build().expect("a realm")
            });
            World { executor, realm, _package: package }
        }

        /// Uses a protocol of the component, which starts it, until a request is answered.
        fn first_answer(&mut self) -> fvirtualization::GuestLifecycleProxy {
            let realm = &self.realm;
            self.executor.run_singlethreaded(async {
                let lifecycle =
                    realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
                let (guest, server) = create_proxy::<fvirtualization::GuestMarker>();
                lifecycle.bind(server).expect("a running component");
                guest.get_serial().await.expect("an answer");
                lifecycle
            })
        }

        /// So that the next use starts it anew.
        fn stop(&mut self, lifecycle: &fvirtualization::GuestLifecycleProxy) {
            let manager = self.realm.manager();
            self.executor.run_singlethreaded(async {
                let echo = manager.tree().find(&"echo".parse().expect("a moniker"));
                let stopped = manager.on_stopped(echo.expect("the child"));
                lifecycle.stop().await.expect("an answer");
                if let Some(stopped) = stopped {
                    stopped.await.expect("an end");
                }
            });
        }
    }

    /// From the use of a protocol to the first request's answer, and to its end.
    #[divan::bench(sample_count = 50, sample_size = 1)]
    fn component_to_first_answer_and_end(bencher: divan::Bencher<'_, '_>) {
        let mut world = World::new();
        bencher.bench_local(|| {
            let lifecycle = world.first_answer();
            world.stop(&lifecycle);
        });
    }

    pub(super) fn say_ratio() {
        let mut world = World::new();
        let (mut bare_times, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            bare_fork_and_exec();
            let bare = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let lifecycle = world.first_answer();
            let component = start.elapsed().as_secs_f64();
            world.stop(&lifecycle);
            bare_times.push(bare);
            ratios.push(component / bare);
        }
        println!("bare fork and exec: {:.2} ms", median(bare_times) * 1e3);
        println!("component to its first answer: {:.2} times that", median(ratios));
    }

    fn median(mut figures: Vec<f64>) -> f64 {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    }
}
