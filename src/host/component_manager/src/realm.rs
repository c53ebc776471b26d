//! `fuchsia.component.Realm`: a component makes, reaches and destroys children of its own.

use crate::decl::*;
use crate::manager::{ExecutionState, Given, GivenEntry, Manager};
use crate::model::InstanceId;
use crate::name::{Name, RelativePath, Url};
use fidl::endpoints::{RequestStream, ServerEnd};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fuchsia_async as fasync;
use futures::StreamExt;

/// The most children of one reply, `fuchsia.component/MAX_CHILD_COUNT`. Fewer are sent, so that long names fit a message.
const CHILDREN_A_REPLY: usize = 32;

/// Serves the realm of `scope` until the client leaves or the component is destroyed. Requests are handled in their order.
pub(crate) fn serve(
    manager: &Manager,
    scope: InstanceId,
    server: ServerEnd<fcomponent::RealmMarker>,
) {
    let manager = manager.downgrade();
    fasync::Task::local(async move {
        let mut requests = server.into_stream();
        while let Some(Ok(request)) = requests.next().await {
            let Some(manager) = manager.upgrade() else { return };
            if manager.tree().get(scope).is_err() {
                return;
            }
            // A client that is gone needs no answer.
            let _gone = answer(&manager, scope, request).await;
        }
    })
    .detach();
}

async fn answer(
    manager: &Manager,
    scope: InstanceId,
    request: fcomponent::RealmRequest,
) -> Result<(), fidl::Error> {
    match request {
        fcomponent::RealmRequest::CreateChild { collection, decl, args, responder } => {
            responder.send(create_child(manager, scope, &collection, decl, args))
        }
        fcomponent::RealmRequest::DestroyChild { child, responder } => {
            let result = match find(manager, scope, &child) {
                Ok((id, name)) if name.collection.is_some() => {
                    manager.destroy(id).await;
                    Ok(())
                }
                Ok(_) => Err(fcomponent::Error::InvalidArguments),
                Err(error) => Err(error),
            };
            responder.send(result)
        }
        fcomponent::RealmRequest::OpenExposedDir { child, exposed_dir, responder } => {
            let opened = find(manager, scope, &child).and_then(|(id, _)| {
                manager.open_exposed(id, exposed_dir).map_err(|error| error.as_fidl())
            });
            responder.send(opened)
        }
        fcomponent::RealmRequest::OpenController { child, controller, responder } => {
            let found = find(manager, scope, &child)
                .map(|(id, _)| serve_controller(manager, id, controller));
            responder.send(found)
        }
        fcomponent::RealmRequest::ListChildren { collection, iter, responder } => {
            responder.send(list_children(manager, scope, &collection, iter))
        }
    }
}

fn find(
    manager: &Manager,
    scope: InstanceId,
    child: &fdecl::ChildRef,
) -> Result<(InstanceId, ChildName), fcomponent::Error> {
    let invalid = |_| fcomponent::Error::InvalidArguments;
    let name = match &child.collection {
        Some(collection) => ChildName {
            collection: Some(collection.parse().map_err(invalid)?),
            name: Name::long(&child.name).map_err(invalid)?,
        },
        None => ChildName { collection: None, name: child.name.parse().map_err(invalid)? },
    };
    let found = { manager.tree().child(scope, &name) };
    found.map(|id| (id, name)).map_err(|error| error.as_fidl())
}

fn create_child(
    manager: &Manager,
    scope: InstanceId,
    collection: &fdecl::CollectionRef,
    decl: fdecl::Child,
    args: fcomponent::CreateChildArgs,
) -> Result<(), fcomponent::Error> {
    let invalid = |_| fcomponent::Error::InvalidArguments;
    let (Some(name), Some(url), Some(startup)) = (decl.name, decl.url, decl.startup) else {
        return Err(fcomponent::Error::InvalidArguments);
    };
    if decl.environment.is_some() || matches!(decl.on_terminate, Some(fdecl::OnTerminate::Reboot)) {
        return Err(fcomponent::Error::InvalidArguments);
    }
    let collection: Name = collection.name.parse().map_err(invalid)?;
    let resolved = manager.resolve(scope).map_err(|error| error.as_fidl())?;
    let place =
        resolved.decl.collection(&collection).ok_or(fcomponent::Error::CollectionNotFound)?;
    let name =
        if place.allow_long_names { Name::long(&name) } else { name.parse() }.map_err(invalid)?;
    let url: Url = url.parse().map_err(invalid)?;
    let startup = match startup {
        fdecl::StartupMode::Lazy => Startup::Lazy,
        fdecl::StartupMode::Eager => Startup::Eager,
    };
    let offers = args
        .dynamic_offers
        .unwrap_or_default()
        .into_iter()
        .map(|offer| dynamic_offer(offer, &collection))
        .collect::<Option<Vec<_>>>();
    let offers = offers.ok_or(fcomponent::Error::InvalidArguments)?;
    let handles = args.numbered_handles.unwrap_or_default();
    if !handles.is_empty() && place.durability != Durability::SingleRun {
        return Err(fcomponent::Error::Unsupported);
    }
    let created = { manager.tree().create_child(scope, &collection, name, url, startup, offers) };
    let id = created.map_err(|error| error.as_fidl())?;
    if let Some(controller) = args.controller {
        serve_controller(manager, id, controller);
    }
    if place.durability == Durability::SingleRun || startup == Startup::Eager {
        let started = match manager.resolve(id) {
            Err(error) => Err(error.as_fidl()),
            Ok(_) => {
                let given = Given { numbered_handles: handles, ..Given::default() };
                manager.start_given(id, given).map_err(|error| error.as_fidl())
            }
        };
        if let Err(error) = started {
            manager.tree().remove(id);
            return Err(error);
        }
    }
    Ok(())
}

/// A dynamic offer in our terms, or `None` for one that is not complete or of a kind that is not routed.
fn dynamic_offer(offer: fdecl::Offer, collection: &Name) -> Option<OfferDecl> {
    let (kind, source, source_name, target_name, rights, subdir, availability) = match offer {
        fdecl::Offer::Protocol(offer) => (
            CapabilityType::Protocol,
            offer.source?,
            offer.source_name?,
            offer.target_name?,
            None,
            None,
            offer.availability,
        ),
        fdecl::Offer::Directory(offer) => {
            let rights = offer.rights.map(|rights| Rights::from_bits_truncate(rights.bits()));
            (
                CapabilityType::Directory,
                offer.source?,
                offer.source_name?,
                offer.target_name?,
                rights,
                offer.subdir,
                offer.availability,
            )
        }
        fdecl::Offer::Storage(offer) => (
            CapabilityType::Storage,
            offer.source?,
            offer.source_name?,
            offer.target_name?,
            None,
            None,
            offer.availability,
        ),
        _ => return None,
    };
    let source = match source {
        fdecl::Ref::Parent(_) => Source::Parent,
        fdecl::Ref::Self_(_) => Source::Itself,
        fdecl::Ref::Framework(_) => Source::Framework,
        fdecl::Ref::VoidType(_) => Source::Void,
        fdecl::Ref::Child(child) => {
            let collection = child.collection.map(|name| name.parse()).transpose().ok()?;
            Source::Child(ChildName { collection, name: Name::long(&child.name).ok()? })
        }
        _ => return None,
    };
    let availability = match availability {
        None | Some(fdecl::Availability::Required) => Availability::Required,
        Some(fdecl::Availability::Optional) => Availability::Optional,
        Some(fdecl::Availability::SameAsTarget) => Availability::SameAsTarget,
        Some(fdecl::Availability::Transitional) => Availability::Transitional,
    };
    Some(OfferDecl {
        kind,
        source_name: source_name.parse().ok()?,
        source,
        target: OfferTarget::Collection(collection.clone()),
        target_name: target_name.parse().ok()?,
        rights,
        subdir: subdir.unwrap_or_default().parse::<RelativePath>().ok()?,
        availability,
    })
}

fn list_children(
    manager: &Manager,
    scope: InstanceId,
    collection: &fdecl::CollectionRef,
    iter: ServerEnd<fcomponent::ChildIteratorMarker>,
) -> Result<(), fcomponent::Error> {
    let collection: Name =
        collection.name.parse().map_err(|_| fcomponent::Error::InvalidArguments)?;
    let resolved = manager.resolve(scope).map_err(|error| error.as_fidl())?;
    resolved.decl.collection(&collection).ok_or(fcomponent::Error::CollectionNotFound)?;
    let children = { manager.tree().children(scope) };
    let children: Vec<_> = children
        .into_iter()
        .filter(|(name, _)| name.collection.as_ref() == Some(&collection))
        .map(|(name, _)| fdecl::ChildRef {
            name: name.name.to_string(),
            collection: Some(collection.to_string()),
        })
        .collect();
    fasync::Task::local(async move {
        let mut pieces = children.chunks(CHILDREN_A_REPLY);
        let mut requests = iter.into_stream();
        while let Some(Ok(fcomponent::ChildIteratorRequest::Next { responder })) =
            requests.next().await
        {
            if responder.send(pieces.next().unwrap_or_default()).is_err() {
                return;
            }
        }
    })
    .detach();
    Ok(())
}

/// Serves `fuchsia.component.Controller` of `id`.
fn serve_controller(
    manager: &Manager,
    id: InstanceId,
    server: ServerEnd<fcomponent::ControllerMarker>,
) {
    let manager = manager.downgrade();
    fasync::Task::local(async move {
        let mut requests = server.into_stream();
        while let Some(Ok(request)) = requests.next().await {
            let Some(manager) = manager.upgrade() else { return };
            // A client that is gone needs no answer.
            let _gone = match request {
                fcomponent::ControllerRequest::Start { args, execution_controller, responder } => {
                    responder.send(start_with(&manager, id, args, execution_controller))
                }
                fcomponent::ControllerRequest::IsStarted { responder } => {
                    let known = manager.tree().get(id).is_ok();
                    let started = manager.state(id) == ExecutionState::Running;
                    responder.send(if known {
                        Ok(started)
                    } else {
                        Err(fcomponent::Error::InstanceNotFound)
                    })
                }
                fcomponent::ControllerRequest::OpenExposedDir { exposed_dir, responder } => {
                    responder.send(
                        manager.open_exposed(id, exposed_dir).map_err(|error| error.as_fidl()),
                    )
                }
                fcomponent::ControllerRequest::Destroy { responder } => {
                    let dynamic =
                        manager.tree().get(id).is_ok_and(|instance| instance.durability.is_some());
                    if dynamic {
                        manager.destroy(id).await;
                    }
                    responder.send(if dynamic {
                        Ok(())
                    } else {
                        Err(fcomponent::Error::InvalidArguments)
                    })
                }
                _ => Ok(()),
            };
        }
    })
    .detach();
}

/// A namespace entry in our terms, or `None` for one that is not complete or has no path of a namespace.
fn given_entry(entry: fcomponent::NamespaceEntry) -> Option<GivenEntry> {
    Some((entry.path?.parse().ok()?, entry.directory?))
}

fn start_with(
    manager: &Manager,
    id: InstanceId,
    args: fcomponent::StartChildArgs,
    server: ServerEnd<fcomponent::ExecutionControllerMarker>,
) -> Result<(), fcomponent::Error> {
    if manager.tree().get(id).is_err() {
        return Err(fcomponent::Error::InstanceNotFound);
    }
    if manager.state(id) != ExecutionState::Stopped {
        return Err(fcomponent::Error::InstanceAlreadyStarted);
    }
    let entries = args.namespace_entries.unwrap_or_default().into_iter().map(given_entry);
    let given = Given {
        numbered_handles: args.numbered_handles.unwrap_or_default(),
        namespace_entries: entries
            .collect::<Option<_>>()
            .ok_or(fcomponent::Error::InvalidArguments)?,
    };
    manager.start_given(id, given).map_err(|error| error.as_fidl())?;
    let Some(stopped) = manager.on_stopped(id) else { return Err(fcomponent::Error::InstanceDied) };
    let weak = manager.downgrade();
    fasync::Task::local(async move {
        let mut requests = server.into_stream();
        let control = requests.control_handle();
        let mut stopped = stopped;
        loop {
            match futures::future::select(requests.next(), &mut stopped).await {
                futures::future::Either::Left((
                    Some(Ok(fcomponent::ExecutionControllerRequest::Stop { .. })),
                    _,
                )) => {
                    if let Some(manager) = weak.upgrade() {
                        fasync::Task::local(async move { manager.stop(id).await }).detach();
                    }
                }
                futures::future::Either::Left((Some(Ok(_)), _)) => {}
                // As on Fuchsia, the component runs as long as somebody holds its execution controller.
                futures::future::Either::Left((None | Some(Err(_)), _)) => {
                    if let Some(manager) = weak.upgrade() {
                        manager.stop(id).await;
                    }
                    return;
                }
                futures::future::Either::Right((ended, _)) => {
                    if let Ok(ended) = ended {
                        let payload = fcomponent::StoppedPayload {
                            status: Some(ended.status.into_raw()),
                            exit_code: ended.exit_code,
                            ..Default::default()
                        };
                        let _gone = control.send_on_stop(&payload);
                    }
                    return;
                }
            }
        }
    })
    .detach();
    Ok(())
}
