{{/* Parts that the pods of all our processes share. */}}

{{/* Variables of every process. Argument: (list $ DRAIN-SECONDS). */}}
{{- define "moonshard.commonEnv" -}}
{{- $ := index . 0 -}}
- name: MOONSHARD_INSTANCE
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- { name: MOONSHARD_METRICS_LISTEN, value: "0.0.0.0:9090" }
- { name: MOONSHARD_LOG_LEVEL, value: {{ $.Values.logLevel | quote }} }
- { name: MOONSHARD_DRAIN_S, value: {{ include "moonshard.text" (index . 1) | quote }} }
{{- with $.Values.tracing.endpoint }}
- { name: MOONSHARD_TRACE_ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- if $.Values.tls.enabled }}
- { name: MOONSHARD_TLS_CERT, value: /secrets/tls/tls.crt }
- { name: MOONSHARD_TLS_KEY, value: /secrets/tls/tls.key }
- { name: MOONSHARD_TLS_CA, value: /secrets/tls/ca.crt }
- { name: MOONSHARD_TLS_NAME, value: {{ $.Values.tls.name | quote }} }
{{- end }}
{{- end }}

{{/* Variables of every gRPC process. */}}
{{- define "moonshard.grpcEnv" -}}
- { name: MOONSHARD_LISTEN, value: "0.0.0.0:50051" }
- { name: MOONSHARD_HEALTH_LISTEN, value: "0.0.0.0:9001" }
{{- end }}

{{/* Variables of the processes that hold the model or its vocabulary. Argument: (list $ ROLE). */}}
{{- define "moonshard.modelEnv" -}}
{{- $role := index (index . 0).Values (index . 1) -}}
{{- $threads := $role.threads -}}
- { name: MOONSHARD_MODEL, value: {{ (index . 0).Values.model.path | quote }} }
- { name: MOONSHARD_THREADS, value: {{ include "moonshard.text" $threads | quote }} }
- { name: OMP_NUM_THREADS, value: {{ include "moonshard.text" $threads | quote }} }
{{- if hasKey $role "gpus" }}
{{- /* Explicit, so that a pod with a GPU resource that finds no GPU stops instead of computing on its CPU. */}}
- { name: MOONSHARD_DEVICE, value: {{ ternary "cuda" "cpu" (gt (int $role.gpus) 0) }} }
{{- end }}
{{- end }}

{{/* Variables of the processes that use Redis. */}}
{{- define "moonshard.storeEnv" -}}
- { name: MOONSHARD_STORE, value: {{ include "moonshard.storeUrls" . | quote }} }
{{- if include "moonshard.passwordSecret" . }}
- { name: MOONSHARD_STORE_PASSWORD_FILE, value: /secrets/store/password }
{{- end }}
{{- if include "moonshard.macSecret" . }}
- { name: MOONSHARD_STORE_MAC_FILE, value: /secrets/store-mac/mac }
{{- end }}
{{- if .Values.store.caSecret }}
- { name: MOONSHARD_STORE_CA, value: /secrets/store-ca/ca.crt }
{{- end }}
{{- end }}

{{/* Variables from `settings` of a role. Argument: these settings. */}}
{{- define "moonshard.moreEnv" -}}
{{- range $name, $value := . }}
- { name: MOONSHARD_{{ $name }}, value: {{ include "moonshard.text" $value | quote }} }
{{- end }}
{{- end }}

{{/* A value as a variable has it: lists with commas, numbers in full, for Helm prints ten million as 1e+07. */}}
{{- define "moonshard.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* Ports of every gRPC process. */}}
{{- define "moonshard.grpcPorts" -}}
- { name: grpc, containerPort: 50051 }
- { name: health, containerPort: 9001 }
- { name: metrics, containerPort: 9090 }
{{- end }}

{{/*
Probes of every gRPC process. Ready: it serves. Alive: it loads and gets further, or its event loop turns; a start has no
time limit, because it takes as long as the weights are large. The startup probe gives the time until the port is there.
*/}}
{{- define "moonshard.grpcProbes" -}}
startupProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  grpc: {port: 9001}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}

{{- define "moonshard.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* `pods` merged with a role's `pod`, which wins; lists are joined. JSON. Argument: (list $ VALUES-OF-THE-ROLE). */}}
{{- define "moonshard.podValues" -}}
{{- $all := (index . 0).Values.pods -}}
{{- $own := get (index . 1) "pod" | default dict -}}
{{- $merged := mergeOverwrite (deepCopy $all) (deepCopy $own) -}}
{{- range $list := list "tolerations" "env" "volumes" "mounts" "initContainers" -}}
{{- $_ := set $merged $list (concat (get $all $list | default list) (get $own $list | default list) | default list) -}}
{{- end -}}
{{ toJson $merged }}
{{- end }}

{{/* metadata of a pod template. Argument: (list $ VALUES-OF-THE-ROLE COMPONENT). */}}
{{- define "moonshard.podMetadata" -}}
{{- $pod := include "moonshard.podValues" . | fromJson -}}
labels:
  {{- include "moonshard.selector" (list (index . 0) (index . 2)) | nindent 2 }}
  {{- with $pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $pod.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One list of these merged values as YAML; nothing if it is empty. Argument: (list $ VALUES-OF-THE-ROLE LIST). */}}
{{- define "moonshard.podList" -}}
{{- with get (include "moonshard.podValues" . | fromJson) (index . 2) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Fields of every pod spec. Argument: (list $ VALUES-OF-THE-ROLE COMPONENT). */}}
{{- define "moonshard.podSpec" -}}
{{- $ := index . 0 -}}
{{- $values := index . 1 -}}
{{- $pod := include "moonshard.podValues" . | fromJson -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml $pod.securityContext | nindent 2 }}
{{- range $key := list "runtimeClassName" "priorityClassName" "schedulerName" }}
{{- with get $pod $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (get $values "tolerations" | default list) $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $pod.topologyKey }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "moonshard.selector" (list $ (index . 2)) | nindent 8 }}
{{- end }}

{{/* Resources of a role's container, its GPUs included. Argument: (list $ ROLE). */}}
{{- define "moonshard.resources" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
{{- $resources := deepCopy $values.resources -}}
{{- if $values.gpus -}}
{{- $limits := merge (dict (index . 0).Values.gpuResource (toString $values.gpus)) (get $resources "limits" | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- end }}

{{/* volumeMounts of a container. Argument: (list $ USES), of "tls", "store", "mac", "keys", "model", "shm". */}}
{{- define "moonshard.mounts" -}}
{{- $ := index . 0 -}}
{{- $uses := index . 1 -}}
- { name: tmp, mountPath: /tmp }
{{- if and (has "tls" $uses) $.Values.tls.enabled }}
- { name: tls, mountPath: /secrets/tls, readOnly: true }
{{- end }}
{{- if and (has "store" $uses) (include "moonshard.passwordSecret" $) }}
- { name: store, mountPath: /secrets/store, readOnly: true }
{{- end }}
{{- if and (has "mac" $uses) (include "moonshard.macSecret" $) }}
- { name: store-mac, mountPath: /secrets/store-mac, readOnly: true }
{{- end }}
{{- if and (has "store" $uses) $.Values.store.caSecret }}
- { name: store-ca, mountPath: /secrets/store-ca, readOnly: true }
{{- end }}
{{- if and (has "keys" $uses) $.Values.gateway.keysSecret }}
- { name: keys, mountPath: /secrets/keys, readOnly: true }
{{- end }}
{{- if and (has "model" $uses) (ne $.Values.model.volume.kind "image") }}
- { name: model, mountPath: {{ $.Values.model.volume.mountPath }}, readOnly: true }
{{- end }}
{{- if has "shm" $uses }}
- { name: shm, mountPath: /dev/shm }
{{- end }}
{{- end }}

{{/* Volumes for these mounts. Argument: (list $ USES SHM-SIZE). */}}
{{- define "moonshard.volumes" -}}
{{- $ := index . 0 -}}
{{- $uses := index . 1 -}}
- name: tmp
  emptyDir: {}
{{- if and (has "tls" $uses) $.Values.tls.enabled }}
- name: tls
  # Keys are named so that a pod waits until they are there.
  secret:
    secretName: {{ include "moonshard.tlsSecret" $ }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}, {key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- if and (has "store" $uses) (include "moonshard.passwordSecret" $) }}
- name: store
  secret:
    secretName: {{ include "moonshard.passwordSecret" $ }}
    defaultMode: 0440
    items: [{key: password, path: password}]
{{- end }}
{{- if and (has "mac" $uses) (include "moonshard.macSecret" $) }}
- name: store-mac
  secret:
    secretName: {{ include "moonshard.macSecret" $ }}
    defaultMode: 0440
    items: [{key: mac, path: mac}]
{{- end }}
{{- if and (has "store" $uses) $.Values.store.caSecret }}
- name: store-ca
  secret: { secretName: {{ $.Values.store.caSecret }}, defaultMode: 0440 }
{{- end }}
{{- if and (has "keys" $uses) $.Values.gateway.keysSecret }}
- name: keys
  secret: { secretName: {{ $.Values.gateway.keysSecret }}, defaultMode: 0440 }
{{- end }}
{{- if and (has "model" $uses) (ne $.Values.model.volume.kind "image") }}
{{ include "moonshard.modelVolume" (list $ true) }}
{{- end }}
{{- if has "shm" $uses }}
- name: shm
  emptyDir: { medium: Memory, sizeLimit: {{ index . 2 }} }
{{- end }}
{{- end }}

{{/* The volume with the checkpoint. Argument: (list $ READ-ONLY). */}}
{{- define "moonshard.modelVolume" -}}
{{- $volume := (index . 0).Values.model.volume -}}
- name: model
{{- if eq $volume.kind "hostPath" }}
  hostPath: { path: {{ $volume.hostPath }}, type: Directory }
{{- else if eq $volume.kind "oci" }}
  image: { reference: {{ $volume.reference }}, pullPolicy: {{ (index . 0).Values.image.pullPolicy }} }
{{- else }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-model" (include "moonshard.name" (index . 0))) $volume.existingClaim }}
    readOnly: {{ index . 1 }}
{{- end }}
{{- end }}

{{/* The user's init containers, then a wait for the Job that fills the claim. Argument: (list $ IMAGE VALUES-OF-THE-ROLE). */}}
{{- define "moonshard.initContainers" -}}
{{- $ := index . 0 -}}
{{- $more := include "moonshard.podList" (list $ (index . 2) "initContainers") -}}
{{- $waits := and (index . 1) $.Values.model.preload.enabled -}}
{{- if or $waits $more }}
initContainers:
  {{- $more | indent 2 }}
{{- end }}
{{- if $waits }}
  - name: wait-for-model
    {{- include "moonshard.image" . | nindent 4 }}
    command: [timeout, {{ include "moonshard.text" $.Values.model.preload.deadlineSeconds | quote }}, sh, -c]
    args: ['until [ -e {{ $.Values.model.path }}/.preloaded ]; do sleep 5; done']
    {{- include "moonshard.containerSecurity" $ | nindent 4 }}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {memory: 64Mi}
    volumeMounts:
      {{- include "moonshard.mounts" (list $ (list "model")) | nindent 6 }}
{{- end }}
{{- end }}
