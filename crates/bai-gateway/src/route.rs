//! The routes as data, and their resolution as a plain function (`http-api.md` 1.3, 1.4, 4.0).
//!
//! Invariants: literal segments win over parameters; trailing and doubled slashes are significant; a legacy copy of a
//! module's empty path ends with a slash.

use bai_core::manager_status::StatusGate;
use percent_encoding::percent_decode_str;

use crate::version::Major;

/// Who may call an endpoint (`http-api.md` 3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Anybody; authentication headers are not even read.
    Public,
    /// Whoever signs.
    Auth,
    /// Superadmins.
    Superadmin,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Root,
    AuthTest,
    AuthAuthorize,
    AuthSignup,
    SessionCreate,
    SessionInfo,
    SessionRestart,
    SessionDestroy,
    SessionExecute,
    SessionInterrupt,
    SessionComplete,
    SessionLogs,
    SessionFiles,
    SessionUpload,
    SessionDownload,
    StreamExecute,
    StreamPty,
    StreamProxy,
    StreamApps,
    StreamEvents,
    ConfigResourceSlots,
    ConfigVFolderTypes,
    ConfigDockerRegistries,
    ConfigGet,
    ConfigSet,
    ConfigDelete,
    ManagerStatus,
    ManagerSetStatus,
    ManagerAnnouncement,
    ManagerAnnounce,
    ResourcePresets,
    ResourceCheckPresets,
    ResourceRecalculateUsage,
    ResourceUsagePerMonth,
    ResourceUsagePerPeriod,
}

/// One line of the table.
#[derive(Debug)]
pub struct Route {
    pub method: &'static str,
    /// Unversioned path; `{name}` matches one segment.
    pub path: &'static str,
    /// Major versions under which the route exists as `/vN…` too.
    pub legacy: &'static [u8],
    pub gate: Gate,
    pub status: StatusGate,
    pub endpoint: Endpoint,
}

const fn route(
    method: &'static str,
    path: &'static str,
    legacy: &'static [u8],
    gate: Gate,
    status: StatusGate,
    endpoint: Endpoint,
) -> Route {
    Route {
        method,
        path,
        legacy,
        gate,
        status,
        endpoint,
    }
}

const ALL: &[u8] = &[1, 2, 3, 4];
const SINCE_2: &[u8] = &[2, 3, 4];
const SINCE_3: &[u8] = &[3, 4];
const SINCE_4: &[u8] = &[4];
const NONE: &[u8] = &[];

/// Every route. `/auth` is the module's empty path, whose legacy copy is `/vN/auth/`.
pub const ROUTES: &[Route] = {
    use Endpoint as E;
    use Gate::{Auth, Public, Superadmin as SA};
    use StatusGate::{None as Any, Running as W, RunningOrFrozen as R};
    &[
        route("GET", "/", NONE, Public, Any, E::Root),
        route("GET", "/auth", ALL, Auth, Any, E::AuthTest),
        route("POST", "/auth", ALL, Auth, Any, E::AuthTest),
        route("GET", "/auth/test", ALL, Auth, Any, E::AuthTest),
        route("POST", "/auth/test", ALL, Auth, Any, E::AuthTest),
        route("POST", "/auth/authorize", ALL, Public, Any, E::AuthAuthorize),
        route("POST", "/auth/signup", ALL, Public, Any, E::AuthSignup),
        route("POST", "/kernel", ALL, Auth, W, E::SessionCreate),
        route("POST", "/kernel/create", ALL, Auth, W, E::SessionCreate),
        route("GET", "/kernel/{session}", ALL, Auth, R, E::SessionInfo),
        route("PATCH", "/kernel/{session}", ALL, Auth, R, E::SessionRestart),
        route("DELETE", "/kernel/{session}", ALL, Auth, R, E::SessionDestroy),
        route("POST", "/kernel/{session}", ALL, Auth, R, E::SessionExecute),
        route("GET", "/kernel/{session}/logs", ALL, Auth, R, E::SessionLogs),
        route(
            "POST",
            "/kernel/{session}/interrupt",
            ALL,
            Auth,
            R,
            E::SessionInterrupt,
        ),
        route(
            "POST",
            "/kernel/{session}/complete",
            ALL,
            Auth,
            R,
            E::SessionComplete,
        ),
        route("POST", "/kernel/{session}/upload", ALL, Auth, R, E::SessionUpload),
        route(
            "GET",
            "/kernel/{session}/download",
            ALL,
            Auth,
            R,
            E::SessionDownload,
        ),
        // Clients from 24.03 on (`clients.md` 11.3, item 15).
        route(
            "POST",
            "/kernel/{session}/download",
            NONE,
            Auth,
            R,
            E::SessionDownload,
        ),
        route("GET", "/kernel/{session}/files", ALL, Auth, R, E::SessionFiles),
        route(
            "GET",
            "/stream/kernel/{session}/execute",
            SINCE_2,
            Auth,
            R,
            E::StreamExecute,
        ),
        route(
            "GET",
            "/stream/kernel/{session}/events",
            SINCE_2,
            Auth,
            R,
            E::StreamEvents,
        ),
        route(
            "GET",
            "/stream/kernel/{session}/pty",
            SINCE_2,
            Auth,
            R,
            E::StreamPty,
        ),
        route(
            "GET",
            "/stream/kernel/{session}/httpproxy",
            SINCE_2,
            Auth,
            R,
            E::StreamProxy,
        ),
        route(
            "GET",
            "/stream/kernel/{session}/tcpproxy",
            SINCE_2,
            Auth,
            R,
            E::StreamProxy,
        ),
        // Clients from 20.03 on (`clients.md` 11.3, item 16).
        route(
            "GET",
            "/stream/kernel/{session}/apps",
            NONE,
            Auth,
            R,
            E::StreamApps,
        ),
        route(
            "GET",
            "/config/resource-slots",
            SINCE_3,
            Public,
            Any,
            E::ConfigResourceSlots,
        ),
        route("POST", "/config/get", SINCE_3, SA, Any, E::ConfigGet),
        route("POST", "/config/set", SINCE_3, SA, Any, E::ConfigSet),
        route("POST", "/config/delete", SINCE_3, SA, Any, E::ConfigDelete),
        route("GET", "/manager/status", SINCE_2, Public, Any, E::ManagerStatus),
        route("PUT", "/manager/status", SINCE_2, SA, Any, E::ManagerSetStatus),
        route("GET", "/resource/presets", SINCE_4, Auth, Any, E::ResourcePresets),
        route(
            "POST",
            "/resource/check-presets",
            SINCE_4,
            Auth,
            R,
            E::ResourceCheckPresets,
        ),
        route(
            "POST",
            "/resource/recalculate-usage",
            SINCE_4,
            SA,
            R,
            E::ResourceRecalculateUsage,
        ),
        route(
            "GET",
            "/resource/usage/month",
            SINCE_4,
            SA,
            R,
            E::ResourceUsagePerMonth,
        ),
        route(
            "GET",
            "/resource/usage/period",
            SINCE_4,
            SA,
            R,
            E::ResourceUsagePerPeriod,
        ),
        // What clients from 19.09 on ask at their start (`clients.md` 11.3, item 8).
        route(
            "GET",
            "/manager/announcement",
            NONE,
            Public,
            Any,
            E::ManagerAnnouncement,
        ),
        route("POST", "/manager/announcement", NONE, SA, Any, E::ManagerAnnounce),
        route(
            "GET",
            "/config/vfolder-types",
            NONE,
            Auth,
            Any,
            E::ConfigVFolderTypes,
        ),
        route(
            "GET",
            "/folders/_/allowed_types",
            NONE,
            Auth,
            Any,
            E::ConfigVFolderTypes,
        ),
        route(
            "GET",
            "/config/docker-registries",
            NONE,
            Auth,
            Any,
            E::ConfigDockerRegistries,
        ),
        route(
            "GET",
            "/resource/container-registries",
            NONE,
            Auth,
            Any,
            E::ConfigDockerRegistries,
        ),
    ]
};

/// Paths of modules with an empty sub-path, whose legacy copies end with a slash.
const EMPTY_SUBPATHS: &[&str] = &["/auth", "/kernel"];

/// What a method and a path lead to.
#[derive(Debug)]
pub enum Resolution {
    Found {
        route: &'static Route,
        /// The value of the path's parameter, percent-decoded.
        parameter: Option<String>,
        /// The major version in the path.
        legacy: Option<Major>,
    },
    /// A CORS preflight of an existing path, with the methods that the path has.
    Options {
        methods: Vec<&'static str>,
    },
    /// `Allow`: the path's methods, sorted, with `OPTIONS`.
    MethodNotAllowed {
        allow: String,
    },
    NotFound,
}

/// Finds the route of a request. `path` is the raw path, still percent-encoded.
pub fn resolve(method: &str, path: &str) -> Resolution {
    let (legacy, path) = split_version(path);
    let path = if path.is_empty() && legacy.is_none() {
        "/"
    } else {
        path
    };
    let mut matching: Vec<(&'static Route, Option<String>)> = Vec::new();
    for route in ROUTES {
        if legacy.is_some_and(|major| !route.legacy.contains(&major.number())) {
            continue;
        }
        if let Some(parameter) = matches(route.path, path, legacy.is_some()) {
            matching.push((route, parameter));
        }
    }
    let mut methods: Vec<&'static str> = matching.iter().map(|(route, _)| route.method).collect();
    methods.sort_unstable();
    methods.dedup();
    if methods.is_empty() {
        return Resolution::NotFound;
    }
    // Literal routes stand before parametrised ones in the table.
    if let Some((route, parameter)) = matching.into_iter().find(|(route, _)| route.method == method) {
        return Resolution::Found {
            route,
            parameter,
            legacy,
        };
    }
    if method == "OPTIONS" {
        return Resolution::Options { methods };
    }
    methods.push("OPTIONS");
    methods.sort_unstable();
    Resolution::MethodNotAllowed {
        allow: methods.join(","),
    }
}

/// `/v4/kernel/` as (4, `/kernel/`); a path without a known version as itself.
fn split_version(path: &str) -> (Option<Major>, &str) {
    let version = path.strip_prefix("/v").and_then(|rest| {
        let (digits, rest) = rest.split_once('/')?;
        let major = Major::from_number(digits.parse().ok()?)?;
        (digits.len() == 1).then_some((major, &path[path.len() - rest.len() - 1..]))
    });
    match version {
        Some((major, rest)) => (Some(major), rest),
        None => (None, path),
    }
}

/// The parameter of a path that matches the pattern: `Some(None)` for a literal match.
fn matches(pattern: &str, path: &str, is_legacy: bool) -> Option<Option<String>> {
    if is_legacy && EMPTY_SUBPATHS.contains(&pattern) {
        return (path.strip_suffix('/') == Some(pattern)).then_some(None);
    }
    let Some((before, after)) = pattern.split_once("{session}") else {
        return (pattern == path).then_some(None);
    };
    let segment = path.strip_prefix(before)?.strip_suffix(after)?;
    if segment.is_empty() || segment.contains('/') {
        return None;
    }
    Some(Some(percent_decode_str(segment).decode_utf8_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &str, path: &str) -> Option<(Endpoint, Option<String>)> {
        match resolve(method, path) {
            Resolution::Found { route, parameter, .. } => Some((route.endpoint, parameter)),
            _ => None,
        }
    }

    #[test]
    fn slashes_are_significant() {
        assert!(found("GET", "/auth").is_some());
        assert!(found("GET", "/auth/").is_none());
        assert!(found("GET", "/v4/auth/").is_some());
        assert!(found("GET", "/v4/auth").is_none());
        assert_eq!(
            found("POST", "/v4/kernel/").map(|found| found.0),
            Some(Endpoint::SessionCreate)
        );
        assert!(found("POST", "/kernel/").is_none());
        assert!(found("GET", "//").is_none());
        assert!(found("GET", "/v4").is_none() && found("GET", "/v4/").is_none());
        assert!(found("GET", "/v9/auth/test").is_none());
    }

    #[test]
    fn create_is_a_session_name_for_other_methods() {
        assert_eq!(
            found("POST", "/kernel/create"),
            Some((Endpoint::SessionCreate, None))
        );
        assert_eq!(
            found("GET", "/kernel/create"),
            Some((Endpoint::SessionInfo, Some("create".into())))
        );
    }

    #[test]
    fn parameters_are_one_decoded_segment() {
        assert_eq!(
            found("GET", "/kernel/a%20b/logs"),
            Some((Endpoint::SessionLogs, Some("a b".into())))
        );
        assert!(found("GET", "/kernel/a/b/logs").is_none());
        assert!(found("GET", "/kernel//logs").is_none());
    }

    #[test]
    fn wrong_methods_name_the_right_ones() {
        for (method, path, expected) in [
            ("HEAD", "/", "GET,OPTIONS"),
            ("GET", "/kernel", "OPTIONS,POST"),
            ("GET", "/auth/authorize", "OPTIONS,POST"),
        ] {
            let Resolution::MethodNotAllowed { allow } = resolve(method, path) else {
                panic!("{method} {path}")
            };
            assert_eq!(allow, expected);
        }
    }
}
