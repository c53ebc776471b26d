//! What a component costs at its start, beside a bare process of the same program.

fn main() {
    divan::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use component_manager::realm_builder::{Capability, RealmBuilder, Ref};
    use fidl::endpoints::create_proxy;
    use fidl_fuchsia_virtualization as fvirtualization;
    use fuchsia_async as fasync;
    use std::process::{Command, Stdio};

    const PROGRAM: &str = env!("CARGO_BIN_EXE_component_manager_test_components");
    const ECHO: &str = include_str!("../tests/components/meta/echo_elf.cml");

    /// Spawn, run `main`, wait.
    #[divan::bench(sample_count = 50, sample_size = 1)]
    fn bare_fork_and_exec() {
        use std::os::unix::process::CommandExt;
        let status = Command::new(PROGRAM).arg0("bare").stdin(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    /// From the use of a protocol to the first request's answer.
    #[divan::bench(sample_count = 50, sample_size = 1)]
    fn component_to_first_answer(bencher: divan::Bencher<'_, '_>) {
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
        bencher.bench_local(|| {
            executor.run_singlethreaded(async {
                let lifecycle =
                    realm.connect_to_protocol::<fvirtualization::GuestLifecycleMarker>();
                let (guest, server) = create_proxy::<fvirtualization::GuestMarker>();
                lifecycle.bind(server).expect("a running component");
                guest.get_serial().await.expect("an answer");
                lifecycle.stop().await.expect("an answer");
                // The next sample starts it anew.
                fidl::endpoints::Proxy::on_closed(&lifecycle).await.expect("an end");
                let id = realm
                    .manager()
                    .tree()
                    .find(&"echo".parse().expect("a moniker"))
                    .expect("the child");
                if let Some(stopped) = realm.manager().on_stopped(id) {
                    stopped.await.expect("an end");
                }
            });
        });
    }
}
