{{- define "moonshard.name" -}}
{{- $default := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- default $default .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels by which a Service or a policy selects the pods of one component. Argument: (list $ COMPONENT). */}}
{{- define "moonshard.selector" -}}
app.kubernetes.io/name: moonshard
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of every object of one component. Argument: (list $ COMPONENT). */}}
{{- define "moonshard.labels" -}}
{{- $ := index . 0 -}}
{{ include "moonshard.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version }}
{{- end }}

{{/* metadata of an object. Argument: (list $ COMPONENT NAME-SUFFIX). */}}
{{- define "moonshard.metadata" -}}
name: {{ include "moonshard.name" (index . 0) }}{{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "moonshard.labels" . | nindent 2 }}
{{- end }}

{{/* An image. Argument: (list $ "slim" | "torch"). */}}
{{- define "moonshard.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $digest := index $image.digests (index . 1) -}}
{{- if $digest }}
image: {{ $image.repository }}@{{ $digest }}
{{- else }}
image: {{ $image.repository }}:{{ default (index . 0).Chart.AppVersion $image.tag }}{{ index $image (index . 1) }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* DNS name of a Service. Argument: (list $ NAME-SUFFIX). */}}
{{- define "moonshard.host" -}}
{{ include "moonshard.name" (index . 0) }}-{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc
{{- end }}

{{/* Resolves to all pods of a role: its headless Service has a record for each. Argument: (list $ ROLE). */}}
{{- define "moonshard.place" -}}
dns:{{ include "moonshard.host" . }}:50051
{{- end }}

{{/* The name of a role that is installed, else nothing. Argument: (list $ ROLE). */}}
{{- define "moonshard.has" -}}
{{- $role := index . 1 -}}
{{- $values := index (index . 0).Values $role -}}
{{- $shards := hasKey $values "shards" | ternary (get $values "shards") 1 -}}
{{- if and (gt (int $values.maxReplicas) 0) (gt (int $shards) 0) }}{{ $role }}{{ end -}}
{{- end }}

{{/* Whether `helm test` can call the gateway: no key is needed, or it has one. */}}
{{- define "moonshard.hasSmoke" -}}
{{- if or (not .Values.gateway.keysSecret) .Values.gateway.smokeKeySecret }}true{{ end -}}
{{- end }}

{{/* Whether the chart runs Redis itself. */}}
{{- define "moonshard.ownRedis" -}}
{{- if not .Values.store.urls }}true{{ end -}}
{{- end }}

{{/* Whether API keys have rate limits, which Redis counts for all gateways together. */}}
{{- define "moonshard.limits" -}}
{{- if or .Values.gateway.requestsPerMinute .Values.gateway.tokensPerMinute }}true{{ end -}}
{{- end }}

{{/* The chart's Redis servers: name suffix -> eviction policy, key of its resources in values. */}}
{{- define "moonshard.redisServers" -}}
{{- if include "moonshard.ownRedis" . }}
{{- range $i := until (int .Values.redis.instances) }}
redis-{{ $i }}: {policy: allkeys-lru, resources: resources}
{{- end }}
{{- if include "moonshard.limits" . }}
redis-limits: {policy: noeviction, resources: limitsResources}
{{- end }}
{{- end }}
{{- end }}

{{/* URLs of the servers over which values are spread, joined by commas. */}}
{{- define "moonshard.storeUrls" -}}
{{- $urls := .Values.store.urls -}}
{{- if include "moonshard.ownRedis" . -}}
{{- range $i := until (int .Values.redis.instances) -}}
{{- $urls = append $urls (printf "redis://%s:6379/0" (include "moonshard.host" (list $ (printf "redis-%d" $i)))) -}}
{{- end -}}
{{- end -}}
{{ join "," $urls }}
{{- end }}

{{/* Roles that the autoscaler scales: name -> workload, shards, bounds in replicas, target load of a replica. */}}
{{- define "moonshard.scaledRoles" -}}
{{- $targets := dict "vision" "targetRequests" "prefill" "targetQueuedTokens" "decode" "targetGenerations" "expert" "targetGenerations" -}}
{{- $roles := dict -}}
{{- range $role, $target := $targets -}}
{{- $values := index $.Values $role -}}
{{- $byHpa := and (eq $role "vision") (gt (int $values.minReplicas) 0) -}}
{{- if and (include "moonshard.has" (list $ $role)) (not $byHpa) -}}
{{- $kind := eq $role "vision" | ternary "deployment" "statefulset" -}}
{{- $_ := set $roles $role (dict
      "workload" (printf "%s/%s-%s" $kind (include "moonshard.name" $) $role)
      "shards" (int (get $values "shards" | default 1))
      "min" (int $values.minReplicas)
      "max" (int $values.maxReplicas)
      "target" (int (index $values $target))) -}}
{{- end -}}
{{- end -}}
{{ toJson $roles }}
{{- end }}

{{/* spec.replicas of a workload; left out where something scales it, because an upgrade would reset the number. */}}
{{- define "moonshard.replicas" -}}
{{- $ := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $.Values $role -}}
{{- $isFixed := or (eq $.Values.autoscaling.mode "off") (eq $role "gateway" "tokenizer") -}}
{{- $low := int (get $values "replicas" | default (get $values "minReplicas")) -}}
{{- if and $isFixed (or (hasKey $values "shards") (le (int $values.maxReplicas) $low)) }}
replicas: {{ mul $low (int (get $values "shards" | default 1)) }}
{{- end }}
{{- end }}

{{/* Secrets, by what is in them: the user's, or the release's own, which a Job fills; empty: none. */}}
{{- define "moonshard.tlsSecret" -}}
{{- if .Values.tls.enabled }}{{ .Values.tls.existingSecret | default (printf "%s-tls" (include "moonshard.name" .)) }}{{ end -}}
{{- end }}
{{- define "moonshard.passwordSecret" -}}
{{- if .Values.store.passwordSecret }}{{ .Values.store.passwordSecret }}
{{- else if and .Values.store.generateSecrets (include "moonshard.ownRedis" .) }}{{ include "moonshard.name" . }}-store
{{- end }}
{{- end }}
{{- define "moonshard.macSecret" -}}
{{- if .Values.store.macSecret }}{{ .Values.store.macSecret }}
{{- else if .Values.store.generateSecrets }}{{ include "moonshard.name" . }}-store
{{- end }}
{{- end }}

{{/* The release's own secrets that a Job fills: variable of the Job -> name. */}}
{{- define "moonshard.ownSecrets" -}}
{{- $name := include "moonshard.name" . -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) }}
AUTHORITY_SECRET: {{ $name }}-authority
TLS_SECRET: {{ $name }}-tls
{{- end }}
{{- if has (printf "%s-store" $name) (list (include "moonshard.passwordSecret" .) (include "moonshard.macSecret" .)) }}
STORE_SECRET: {{ $name }}-store
{{- end }}
{{- end }}
