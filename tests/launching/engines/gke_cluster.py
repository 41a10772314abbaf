"""A Kubernetes API of JobSets on loopback, for the real kubectl; it validates new JobSets."""

import json
import re

from tests.launching.engines.json_api import serve

GROUP = "jobset.x-k8s.io"
JOBSETS = f"/apis/{GROUP}/v1alpha2/namespaces/default/jobsets"


def problems(manifest):
    """Returns the errors of a JobSet by the published schemas, unknown keys included."""
    import kubernetes_validate
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    try:
        again = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    except ValueError as error:
        return [str(error)]
    found = [] if again == manifest else [f"unknown keys: {_lost(manifest, again)}"]
    for job in manifest["spec"]["replicatedJobs"]:
        document = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            "spec": job["template"]["spec"],
        }
        try:
            kubernetes_validate.validate(document, "1.32", strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(str(error))
    return found


def _lost(given, again):
    if isinstance(given, dict) and isinstance(again, dict):
        return {
            key: _lost(value, again.get(key))
            for key, value in given.items()
            if again.get(key) != value
        }
    if isinstance(given, list) and isinstance(again, list) and len(given) == len(again):
        return [_lost(one, other) for one, other in zip(given, again, strict=True) if one != other]
    return given


class ApiServer:
    """The API, until stopped.

    Attributes:
        jobsets: by name.
    """

    def __init__(self, folder):
        self.jobsets = {}
        self._server = serve(self._answer)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"},
                }
            ],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        }
        folder.mkdir()
        (folder / "config").write_text(json.dumps(config))
        self.environment = {"KUBECONFIG": str(folder / "config"), "HOME": str(folder)}

    def end(self, name, state):
        """Ends a JobSet."""
        self.jobsets[name]["status"] = {"terminalState": state}

    def stop(self):
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, method, path, query, body):
        version = {"groupVersion": f"{GROUP}/v1alpha2", "version": "v1alpha2"}
        fixed = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
            "/apis": {
                "kind": "APIGroupList",
                "groups": [{"name": GROUP, "versions": [version], "preferredVersion": version}],
            },
            f"/apis/{GROUP}/v1alpha2": {
                "kind": "APIResourceList",
                "groupVersion": f"{GROUP}/v1alpha2",
                "resources": [
                    {
                        "name": "jobsets",
                        "singularName": "jobset",
                        "namespaced": True,
                        "kind": "JobSet",
                        "verbs": ["create", "delete", "get", "list", "patch", "watch"],
                    }
                ],
            },
            "/openapi/v3": {
                "paths": {
                    f"apis/{GROUP}/v1alpha2": {"serverRelativeURL": "/openapi/v3/jobset?hash=1"}
                }
            },
            "/openapi/v3/jobset": _openapi(),
        }
        if path in fixed:
            return 200, fixed[path]
        if not path.startswith(JOBSETS):
            return 404, _status(404, f"{path} not found")
        name = path[len(JOBSETS) + 1 :]
        if method == "GET" and not name:
            label, _, value = query.get("labelSelector", ["="])[0].partition("=")
            fitting = [
                one
                for one in self.jobsets.values()
                if not label or one["metadata"]["labels"].get(label) == value
            ]
            return 200, {"apiVersion": version["groupVersion"], "kind": "List", "items": fitting}
        if method == "POST":
            found = problems(_plain(body))
            if found:
                return 422, _status(422, f"JobSet is invalid: {found[0]}")
            assert query["fieldValidation"] == ["Strict"]
            if query.get("dryRun") != ["All"]:
                self.jobsets[body["metadata"]["name"]] = body
            return 201, body
        if name not in self.jobsets:
            return 404, _status(404, f'jobsets.{GROUP} "{name}" not found')
        if method == "DELETE":
            return 200, self.jobsets.pop(name)
        return 200, self.jobsets[name]


def _plain(body):
    """Returns a JobSet without what kubectl adds."""
    text = json.dumps(body)
    copy = json.loads(text)
    copy["metadata"]["annotations"].pop("kubectl.kubernetes.io/last-applied-configuration", None)
    copy["metadata"].pop("namespace", None)
    return copy


def _status(code, message):
    reason = {404: "NotFound", 422: "Invalid"}[code]
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _openapi():
    """Returns a schema with which kubectl leaves the validation of fields to the server."""
    kind = {"group": GROUP, "version": "v1alpha2", "kind": "JobSet"}
    operation = {
        "x-kubernetes-group-version-kind": kind,
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in ("fieldValidation", "dryRun")
        ],
        "responses": {},
    }
    path = re.sub("default", "{namespace}", JOBSETS)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.32"},
        "paths": {f"{path}/{{name}}": {"patch": operation}, path: {"post": operation}},
        "components": {"schemas": {}},
    }
