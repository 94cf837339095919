//! The REST handlers, a file for each verb. [`dispatch`] leads from a route to its handler.

mod auth;
mod config;
mod manager;
mod resource;
mod session;

use http::StatusCode;
use serde_json::json;

use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};
use crate::route::Endpoint;
use crate::{stream, version};

pub(crate) use session::execute::batch_options;

/// The version of the original whose interface this is.
const MANAGER_VERSION: &str = "19.06.0b2";

/// Each handler in a box of its own: together they would make the future of every request as large as the largest, and it
/// is moved several times.
pub(crate) async fn dispatch(endpoint: Endpoint, call: Call) -> Result<Answer, Problem> {
    match endpoint {
        Endpoint::Root => root(),
        Endpoint::AuthTest => Box::pin(auth::test::handle(call)).await,
        Endpoint::AuthAuthorize => Box::pin(auth::authorize::handle(call)).await,
        Endpoint::AuthSignup => Box::pin(auth::signup::handle(call)).await,
        Endpoint::SessionCreate => Box::pin(session::create::handle(call)).await,
        Endpoint::SessionInfo => Box::pin(session::info(call)).await,
        Endpoint::SessionRestart => Box::pin(session::restart(call)).await,
        Endpoint::SessionDestroy => Box::pin(session::destroy(call)).await,
        Endpoint::SessionExecute => Box::pin(session::execute::handle(call)).await,
        Endpoint::SessionInterrupt => Box::pin(session::interrupt(call)).await,
        Endpoint::SessionComplete => Box::pin(session::complete::handle(call)).await,
        Endpoint::SessionLogs => Box::pin(session::logs(call)).await,
        Endpoint::SessionFiles => Box::pin(session::files::handle(call)).await,
        Endpoint::SessionUpload => Box::pin(session::upload::handle(call)).await,
        Endpoint::SessionDownload => Box::pin(session::download::handle(call)).await,
        Endpoint::StreamExecute => Box::pin(stream::execute::handle(call)).await,
        Endpoint::StreamPty => Box::pin(stream::pty::handle(call)).await,
        Endpoint::StreamProxy => Box::pin(stream::proxy::handle(call)).await,
        Endpoint::StreamApps => Box::pin(stream::proxy::apps(call)).await,
        Endpoint::StreamEvents => Box::pin(stream::events::handle(call)).await,
        Endpoint::ConfigResourceSlots => config::resource_slots(call).await,
        Endpoint::ConfigVFolderTypes => config::vfolder_types(&call),
        Endpoint::ConfigDockerRegistries => config::docker_registries(call).await,
        Endpoint::ConfigGet => config::get::handle(call).await,
        Endpoint::ConfigSet => config::set::handle(call).await,
        Endpoint::ConfigDelete => config::delete::handle(call).await,
        Endpoint::ManagerStatus => manager::status(call).await,
        Endpoint::ManagerSetStatus => manager::set_status::handle(call).await,
        Endpoint::ManagerAnnouncement => manager::announcement(call).await,
        Endpoint::ManagerAnnounce => manager::announce::handle(call).await,
        Endpoint::ResourcePresets => resource::presets(call).await,
        Endpoint::ResourceCheckPresets => resource::check_presets::handle(call).await,
        Endpoint::ResourceRecalculateUsage => resource::recalculate_usage(call).await,
        Endpoint::ResourceUsagePerMonth => resource::usage::per_month(call).await,
        Endpoint::ResourceUsagePerPeriod => resource::usage::per_period(call).await,
    }
}

/// `GET /` (`http-api.md` 4.1).
fn root() -> Result<Answer, Problem> {
    json(
        StatusCode::OK,
        &json!({ "version": version::LATEST, "manager": MANAGER_VERSION }),
    )
}
