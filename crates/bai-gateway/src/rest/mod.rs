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

pub(crate) async fn dispatch(endpoint: Endpoint, call: Call) -> Result<Answer, Problem> {
    match endpoint {
        Endpoint::Root => root(),
        Endpoint::AuthTest => auth::test::handle(call).await,
        Endpoint::AuthAuthorize => auth::authorize::handle(call).await,
        Endpoint::AuthSignup => auth::signup::handle(call).await,
        Endpoint::SessionCreate => session::create::handle(call).await,
        Endpoint::SessionInfo => session::info(call).await,
        Endpoint::SessionRestart => session::restart(call).await,
        Endpoint::SessionDestroy => session::destroy(call).await,
        Endpoint::SessionExecute => session::execute::handle(call).await,
        Endpoint::SessionInterrupt => session::interrupt(call).await,
        Endpoint::SessionComplete => session::complete::handle(call).await,
        Endpoint::SessionLogs => session::logs(call).await,
        Endpoint::SessionFiles => session::files::handle(call).await,
        Endpoint::SessionUpload => session::upload::handle(call).await,
        Endpoint::SessionDownload => session::download::handle(call).await,
        Endpoint::StreamExecute => stream::execute::handle(call).await,
        Endpoint::StreamEvents => Err(bai_core::Error::NotImplemented.into()),
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
