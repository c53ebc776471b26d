//! Clients of real connections: what opens, what is refused and with which status, and what nodes reply.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fidl::endpoints::{ProtocolMarker, Proxy as _, ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, Status};
use futures::StreamExt;
use vfs::DirectoryEntry;
use vfs::directory::{Directory, NewNode, Simple};
use vfs::execution_scope::ExecutionScope;

/// A directory in which clients can make, remove and rename files.
#[derive(Default)]
struct Mutable(Mutex<BTreeMap<String, Arc<dyn DirectoryEntry>>>);

impl Directory for Mutable {
    fn lookup(&self, name: &str) -> Result<Arc<dyn DirectoryEntry>, Status> {
        self.0.lock().expect("no test panics").get(name).cloned().ok_or(Status::NOT_FOUND)
    }

    fn list(&self) -> Result<Vec<(String, vfs::EntryInfo)>, Status> {
        let entries = self.0.lock().expect("no test panics");
        Ok(entries.iter().map(|(name, entry)| (name.clone(), entry.entry_info())).collect())
    }

    fn abilities(&self) -> fio::Operations {
        fio::RW_STAR_DIR
    }

    fn create(&self, name: &str, node: NewNode) -> Result<Arc<dyn DirectoryEntry>, Status> {
        let entry = match node {
            NewNode::File => vfs::file::entry(vfs::file::read_write(Vec::new(), 1024), 1),
            NewNode::Directory => vfs::directory::entry(Arc::new(Mutable::default()), 2),
        };
        self.0.lock().expect("no test panics").insert(name.to_owned(), entry.clone());
        Ok(entry)
    }

    fn unlink(&self, name: &str, _: bool) -> Result<(), Status> {
        let removed = self.0.lock().expect("no test panics").remove(name);
        removed.map(drop).ok_or(Status::NOT_FOUND)
    }

    fn rename(&self, from: &str, target: &Arc<dyn Directory>, to: &str) -> Result<(), Status> {
        let target = target.as_any().and_then(|any| any.downcast_ref::<Mutable>());
        let target = target.ok_or(Status::NOT_SUPPORTED)?;
        let entry = self.0.lock().expect("no test panics").remove(from).ok_or(Status::NOT_FOUND)?;
        target.0.lock().expect("no test panics").insert(to.to_owned(), entry);
        Ok(())
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }
}

fn serve_with(directory: Arc<dyn Directory>, rights: fio::Operations) -> fio::DirectoryProxy {
    let (proxy, server): (_, ServerEnd<fio::DirectoryMarker>) = create_proxy();
    vfs::directory::serve(directory, &ExecutionScope::new(), rights, server);
    proxy
}

/// `file`, `writable`, `echo` (a service that sends one message), `sub/file`.
fn tree() -> Arc<Simple> {
    let root = vfs::directory::simple();
    let sub = vfs::directory::simple();
    let echo = vfs::service::endpoint(|_, channel| {
        channel.write(b"hello", &mut []).expect("the client lives");
    });
    let add = |directory: &Simple, name: &str, entry| {
        directory.add_entry(name, entry).expect("the name is free");
    };
    add(&sub, "file", vfs::file::read_only(b"below".to_vec()));
    add(&root, "file", vfs::file::read_only(b"0123456789".to_vec()));
    add(&root, "writable", vfs::file::entry(vfs::file::read_write(b"abc".to_vec(), 100), 9));
    add(&root, "echo", echo);
    add(&root, "sub", sub);
    root
}

fn serve(rights: fio::Operations) -> fio::DirectoryProxy {
    serve_with(tree(), rights)
}

fn open<P: ProtocolMarker>(
    directory: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> P::Proxy {
    let (proxy, server) = create_proxy::<P>();
    directory
        .open(path, flags, &fio::Options::default(), server.into_channel())
        .expect("the directory lives");
    proxy
}

/// The epitaph with which an open was refused, or `OK`.
async fn outcome(directory: &fio::DirectoryProxy, path: &str, flags: fio::Flags) -> Status {
    let flags = if flags.contains(fio::Flags::PROTOCOL_SERVICE) {
        flags
    } else {
        flags | fio::Flags::FLAG_SEND_REPRESENTATION
    };
    let node = open::<fio::NodeMarker>(directory, path, flags);
    event_status(&node).await
}

async fn event_status(node: &fio::NodeProxy) -> Status {
    match node.take_event_stream().next().await {
        Some(Ok(fio::NodeEvent::OnRepresentation { .. })) => Status::OK,
        Some(Ok(fio::NodeEvent::OnOpen { s, .. })) => Status::from_raw(s),
        Some(Err(fidl::Error::ClientChannelClosed { status, .. })) => status,
        other => panic!("neither an event nor an epitaph: {other:?}"),
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn paths_keep_to_the_rules() {
    let root = serve(fio::R_STAR_DIR);
    for good in ["file", "/file", "sub/file", "sub", "sub/", ".", "/"] {
        assert_eq!(outcome(&root, good, fio::PERM_READABLE).await, Status::OK, "{good}");
    }
    for bad in ["", "..", "sub/..", "sub//file", "./file", "sub/./file"] {
        assert_eq!(outcome(&root, bad, fio::PERM_READABLE).await, Status::BAD_PATH, "{bad}");
    }
    assert_eq!(outcome(&root, "file/", fio::PERM_READABLE).await, Status::NOT_DIR);
    assert_eq!(outcome(&root, "file/x", fio::PERM_READABLE).await, Status::NOT_DIR);
    assert_eq!(outcome(&root, "sub/x", fio::PERM_READABLE).await, Status::NOT_FOUND);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn protocols_are_negotiated() {
    let root = serve(fio::R_STAR_DIR);
    let (file, directory) = (fio::Flags::PROTOCOL_FILE, fio::Flags::PROTOCOL_DIRECTORY);
    let symlink = fio::Flags::PROTOCOL_SYMLINK;
    for (path, flags, expected) in [
        ("file", file, Status::OK),
        ("file", directory, Status::NOT_DIR),
        ("file", symlink, Status::WRONG_TYPE),
        ("file", file | directory, Status::OK),
        ("sub", directory, Status::OK),
        ("sub", file, Status::NOT_FILE),
        ("echo", file | directory, Status::NOT_DIR),
        ("sub", fio::Flags::PROTOCOL_NODE, Status::OK),
        ("echo", fio::Flags::PROTOCOL_NODE, Status::OK),
        ("sub", fio::Flags::PROTOCOL_NODE | file, Status::NOT_FILE),
        ("sub", fio::Flags::PROTOCOL_NODE | fio::Flags::PERM_READ_BYTES, Status::INVALID_ARGS),
        ("sub", fio::Flags::PROTOCOL_SERVICE, Status::WRONG_TYPE),
    ] {
        assert_eq!(outcome(&root, path, flags).await, expected, "{path} {flags:?}");
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn rights_are_never_gained() {
    let root = serve(fio::R_STAR_DIR);
    assert_eq!(outcome(&root, "writable", fio::PERM_WRITABLE).await, Status::ACCESS_DENIED);
    assert_eq!(outcome(&root, "sub", fio::PERM_EXECUTABLE).await, Status::ACCESS_DENIED);
    let posix =
        fio::PERM_READABLE | fio::Flags::PERM_INHERIT_WRITE | fio::Flags::PERM_INHERIT_EXECUTE;
    let sub = open::<fio::DirectoryMarker>(&root, "sub", posix);
    let flags = sub.get_flags().await.expect("it lives").expect("it is supported");
    assert_eq!(flags, fio::PERM_READABLE | fio::Flags::PROTOCOL_DIRECTORY);

    // Nor by going through a clone, the directory itself, or the older calls.
    let (clone, server) = create_proxy::<fio::DirectoryMarker>();
    root.clone(ServerEnd::new(server.into_channel())).expect("it lives");
    let itself = open::<fio::DirectoryMarker>(&clone, ".", fio::PERM_READABLE);
    assert_eq!(outcome(&itself, "writable", fio::PERM_WRITABLE).await, Status::ACCESS_DENIED);
    let (node, server) = create_proxy::<fio::NodeMarker>();
    let flags = fio::OpenFlags::RIGHT_WRITABLE | fio::OpenFlags::DESCRIBE;
    itself.deprecated_open(flags, fio::ModeType::empty(), "writable", server).expect("it lives");
    assert_eq!(event_status(&node).await, Status::ACCESS_DENIED);
    let (node, server) = create_proxy::<fio::NodeMarker>();
    itself.deprecated_clone(flags, server).expect("it lives");
    assert_eq!(event_status(&node).await, Status::ACCESS_DENIED);

    // A file without abilities gives none, whatever the connection has.
    let root = serve(fio::RW_STAR_DIR);
    assert_eq!(outcome(&root, "file", fio::PERM_WRITABLE).await, Status::ACCESS_DENIED);
    let file = open::<fio::FileMarker>(&root, "writable", fio::Flags::PERM_READ_BYTES);
    let written = file.write(b"x").await.expect("it lives");
    assert_eq!(written, Err(Status::BAD_HANDLE.into_raw()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn services_get_their_channel() {
    let root = serve(fio::R_STAR_DIR);
    let (ours, theirs) = zx::Channel::create();
    root.open("echo", fio::Flags::PROTOCOL_SERVICE, &fio::Options::default(), theirs)
        .expect("it lives");
    let mut message = zx::MessageBuf::new();
    fasync::Channel::from_channel(ours).recv_msg(&mut message).await.expect("it says hello");
    assert_eq!(message.bytes(), b"hello");

    // The older call, with a description in front.
    let (node, server) = create_proxy::<fio::NodeMarker>();
    let flags = fio::OpenFlags::DESCRIBE | fio::OpenFlags::NOT_DIRECTORY;
    root.deprecated_open(flags, fio::ModeType::empty(), "echo", server).expect("it lives");
    let event = node.take_event_stream().next().await.expect("an event").expect("no epitaph");
    let (status, info) = event.into_on_open().expect("the first event is OnOpen");
    assert_eq!(Status::from_raw(status), Status::OK);
    assert!(matches!(info.as_deref(), Some(fio::NodeInfoDeprecated::Service(_))));

    let blind = serve(fio::Operations::ENUMERATE | fio::Operations::TRAVERSE);
    assert_eq!(outcome(&blind, "echo", fio::Flags::PROTOCOL_SERVICE).await, Status::ACCESS_DENIED);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn nodes_tell_what_they_are() {
    let root = serve(fio::RW_STAR_DIR);
    assert_eq!(root.query().await.expect("it lives"), b"fuchsia.io/Directory");
    let file = open::<fio::FileMarker>(&root, "file", fio::PERM_READABLE);
    assert_eq!(file.query().await.expect("it lives"), b"fuchsia.io/File");
    let node = open::<fio::NodeMarker>(&root, "file", fio::Flags::PROTOCOL_NODE);
    assert_eq!(node.query().await.expect("it lives"), b"fuchsia.io/Node");
    let query = fio::NodeAttributesQuery::CONTENT_SIZE | fio::NodeAttributesQuery::PROTOCOLS;
    let (mutable, immutable) =
        node.get_attributes(query).await.expect("it lives").expect("it has some");
    assert_eq!(mutable, fio::MutableNodeAttributes::default());
    assert_eq!(immutable.content_size, Some(10));
    assert_eq!(immutable.protocols, Some(fio::NodeProtocolKinds::FILE));
    assert_eq!(immutable.link_count, None);
    let (status, attributes) = file.deprecated_get_attr().await.expect("it lives");
    assert_eq!((status, attributes.content_size, attributes.mode), (0, 10, 0o100_400));
    let (status, flags) = file.deprecated_get_flags().await.expect("it lives");
    assert_eq!((status, flags), (0, fio::OpenFlags::RIGHT_READABLE));

    let options = fio::Options { attributes: Some(query), ..Default::default() };
    let (described, server) = create_proxy::<fio::NodeMarker>();
    let flags = fio::PERM_READABLE | fio::Flags::FLAG_SEND_REPRESENTATION;
    root.open("file", flags, &options, server.into_channel()).expect("it lives");
    let event = described.take_event_stream().next().await.expect("an event").expect("no epitaph");
    let Some(fio::Representation::File(info)) = event.into_on_representation() else {
        panic!("a file was opened");
    };
    let size = info.attributes.and_then(|attributes| attributes.immutable_attributes.content_size);
    assert_eq!(size, Some(10));

    assert_eq!(file.close().await.expect("it lives"), Ok(()));
    assert!(file.on_closed().await.is_ok());
}

#[fuchsia_async::run_singlethreaded(test)]
async fn files_are_read_and_written() {
    let root = serve(fio::RW_STAR_DIR);
    let flags = fio::PERM_READABLE | fio::PERM_WRITABLE;
    let file = open::<fio::FileMarker>(&root, "writable", flags);
    let call = "the connection lives";
    assert_eq!(file.read(2).await.expect(call), Ok(b"ab".to_vec()));
    assert_eq!(file.read(10).await.expect(call), Ok(b"c".to_vec()));
    assert_eq!(file.read(10).await.expect(call), Ok(Vec::new()));
    assert_eq!(file.seek(fio::SeekOrigin::End, -1).await.expect(call), Ok(2));
    assert_eq!(file.write(b"CDE").await.expect(call), Ok(3));
    assert_eq!(file.read_at(100, 1).await.expect(call), Ok(b"bCDE".to_vec()));
    assert_eq!(file.write_at(b"!", 99).await.expect(call), Ok(1));
    assert_eq!(file.write_at(b"!", 100).await.expect(call), Err(Status::NO_SPACE.into_raw()));
    assert_eq!(file.resize(4).await.expect(call), Ok(()));
    assert_eq!(
        file.seek(fio::SeekOrigin::Start, -1).await.expect(call),
        Err(Status::OUT_OF_RANGE.into_raw())
    );
    assert_eq!(file.seek(fio::SeekOrigin::Start, i64::MAX).await.expect(call), Ok(i64::MAX as u64));
    assert_eq!(file.read(1).await.expect(call), Ok(Vec::new()));
    assert_eq!(file.read(8193).await.expect(call), Err(Status::OUT_OF_RANGE.into_raw()));
    assert_eq!(file.read_at(1, u64::MAX).await.expect(call), Ok(Vec::new()));
    assert_eq!(file.set_flags(fio::Flags::FILE_APPEND).await.expect(call), Ok(()));
    assert_eq!(file.write(b"++").await.expect(call), Ok(2));
    assert_eq!(file.read_at(100, 0).await.expect(call), Ok(b"abCD++".to_vec()));
    let vmo = file.get_backing_memory(fio::VmoFlags::READ).await.expect(call).expect("it has some");
    let mut bytes = [0; 6];
    vmo.read(&mut bytes, 0).expect("it is as long as the file");
    assert_eq!(&bytes, b"abCD++");
    let both = fio::VmoFlags::PRIVATE_CLONE | fio::VmoFlags::SHARED_BUFFER;
    let refused = file.get_backing_memory(both).await.expect(call);
    assert_eq!(refused.err(), Some(Status::INVALID_ARGS.into_raw()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn entries_are_made_renamed_and_removed() {
    let root = serve_with(Arc::new(Mutable::default()), fio::RW_STAR_DIR);
    let file = fio::Flags::PROTOCOL_FILE | fio::PERM_READABLE | fio::PERM_WRITABLE;
    let directory = fio::Flags::PROTOCOL_DIRECTORY | fio::PERM_READABLE | fio::PERM_WRITABLE;
    let (maybe, must) = (fio::Flags::FLAG_MAYBE_CREATE, fio::Flags::FLAG_MUST_CREATE);
    assert_eq!(outcome(&root, "a", file).await, Status::NOT_FOUND);
    assert_eq!(outcome(&root, "a", file | must).await, Status::OK);
    assert_eq!(outcome(&root, "a", file | must).await, Status::ALREADY_EXISTS);
    assert_eq!(outcome(&root, "a", file | maybe).await, Status::OK);
    assert_eq!(outcome(&root, "no/a", file | maybe).await, Status::NOT_FOUND);
    assert_eq!(outcome(&root, "d", directory | maybe).await, Status::OK);
    let with_attributes = fio::Options {
        create_attributes: Some(fio::MutableNodeAttributes::default()),
        ..Default::default()
    };
    for (flags, expected) in [(file, Status::INVALID_ARGS), (file | must, Status::NOT_SUPPORTED)] {
        let (node, server) = create_proxy::<fio::NodeMarker>();
        root.open("n", flags, &with_attributes, server.into_channel()).expect("it lives");
        assert_eq!(event_status(&node).await, expected);
    }
    let below = open::<fio::DirectoryMarker>(&root, "d", directory);
    let (status, token) = below.get_token().await.expect("it lives");
    assert_eq!(status, 0);
    let token = zx::Event::from(token.expect("a token"));
    assert_eq!(root.rename("a", token, "b").await.expect("it lives"), Ok(()));
    assert_eq!(outcome(&below, "b", file).await, Status::OK);
    assert_eq!(outcome(&root, "a", file).await, Status::NOT_FOUND);
    let stray = root.rename("d", zx::Event::create(), "e").await.expect("it lives");
    assert_eq!(stray, Err(Status::NOT_FOUND.into_raw()));
    let options = fio::UnlinkOptions::default();
    assert_eq!(below.unlink("b", &options).await.expect("it lives"), Ok(()));
    for bad in ["..", "a/b", ""] {
        let refused = root.unlink(bad, &options).await.expect("it lives");
        assert_eq!(refused, Err(Status::INVALID_ARGS.into_raw()), "{bad}");
    }
    let read_only = open::<fio::DirectoryMarker>(&root, ".", fio::PERM_READABLE);
    assert_eq!(
        outcome(&read_only, "c", fio::Flags::PROTOCOL_FILE | maybe).await,
        Status::ACCESS_DENIED
    );
    let refused = read_only.unlink("d", &options).await.expect("it lives");
    assert_eq!(refused, Err(Status::ACCESS_DENIED.into_raw()));
    assert_eq!(read_only.get_token().await.expect("it lives").0, Status::BAD_HANDLE.into_raw());
}

#[fuchsia_async::run_singlethreaded(test)]
async fn remote_directories_get_the_rest_of_the_path() {
    let root = vfs::directory::simple();
    let remote = vfs::remote::remote_dir(serve(fio::R_STAR_DIR));
    root.add_entry("mount", remote).expect("the name is free");
    let root = serve_with(root, fio::RW_STAR_DIR);
    let file = open::<fio::FileMarker>(&root, "mount/sub/file", fio::PERM_READABLE);
    assert_eq!(file.read(100).await.expect("it lives"), Ok(b"below".to_vec()));
    assert_eq!(outcome(&root, "mount", fio::PERM_READABLE).await, Status::OK);
    assert_eq!(outcome(&root, "mount/sub/", fio::PERM_READABLE).await, Status::OK);
    assert_eq!(outcome(&root, "mount/x", fio::PERM_READABLE).await, Status::NOT_FOUND);
    // The remote connection's rights hold, not those of this one.
    assert_eq!(outcome(&root, "mount/writable", fio::PERM_WRITABLE).await, Status::ACCESS_DENIED);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn watchers_see_changes() {
    let tree = tree();
    let root = serve_with(tree.clone(), fio::R_STAR_DIR);
    let (ours, theirs) = zx::Channel::create();
    let mask = fio::WatchMask::all();
    let watcher = ServerEnd::new(theirs);
    assert_eq!(root.watch(mask, 0, watcher).await.expect("it lives"), 0);
    tree.add_entry("new", vfs::file::read_only(Vec::new())).expect("the name is free");
    tree.remove_entry("new");
    let ours = fasync::Channel::from_channel(ours);
    let mut events = Vec::new();
    while events.len() < 8 {
        let mut message = zx::MessageBuf::new();
        ours.recv_msg(&mut message).await.expect("events come");
        let mut bytes = message.bytes();
        while let [event, length, rest @ ..] = bytes {
            let (name, rest) = rest.split_at(usize::from(*length));
            events.push((*event, String::from_utf8_lossy(name).into_owned()));
            bytes = rest;
        }
    }
    let expected = [
        (3, "."),
        (3, "echo"),
        (3, "file"),
        (3, "sub"),
        (3, "writable"),
        (4, ""),
        (1, "new"),
        (2, "new"),
    ];
    assert_eq!(events, expected.map(|(event, name)| (event, name.to_owned())));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn nonsense_ends_only_the_connection_it_came_on() {
    let root = serve(fio::R_STAR_DIR);
    let bad = open::<fio::DirectoryMarker>(&root, ".", fio::PERM_READABLE);
    bad.as_channel().write(&[0xff; 64], &mut []).expect("there is room");
    assert!(bad.on_closed().await.is_ok());
    assert_eq!(outcome(&root, "file", fio::PERM_READABLE).await, Status::OK);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn shutting_a_scope_down_closes_its_connections() {
    let scope = ExecutionScope::new();
    let (proxy, server) = create_proxy::<fio::DirectoryMarker>();
    vfs::directory::serve(tree(), &scope, fio::R_STAR_DIR, server);
    let file = open::<fio::FileMarker>(&proxy, "file", fio::PERM_READABLE);
    file.read(1).await.expect("it lives").expect("it can be read");
    scope.shutdown();
    scope.wait().await;
    assert!(file.on_closed().await.is_ok() && proxy.on_closed().await.is_ok());
}
