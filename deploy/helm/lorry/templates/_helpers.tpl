{{- define "lorry.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lorry.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- /* Of every object. The name becomes Prometheus' job, which the alerts select servers by. */ -}}
{{- define "lorry.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "lorry.image" -}}
{{- printf "%s:%s" .Values.image.repository .Values.image.tag -}}
{{- end -}}

{{- define "lorry.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "lorry.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "lorry.storeClaim" -}}
{{- .Values.store.existingClaim | default (printf "%s-store" (include "lorry.name" .)) -}}
{{- end -}}

{{- /* Whether servers on several nodes can have the store: true, or nothing. */ -}}
{{- define "lorry.sharesStore" -}}
{{- if or .Values.store.url (eq .Values.store.accessMode "ReadWriteMany") }}true{{ end -}}
{{- end -}}

{{- /* What the server may keep of a bucket: nine tenths of the volume, which also takes what is being
       published. Kubernetes ends a pod whose volume is larger than its limit. */ -}}
{{- define "lorry.copiesGib" -}}
{{- $size := .Values.store.cacheSize -}}
{{- $units := dict "Mi" 0.0009765625 "Gi" 1.0 "Ti" 1024.0 -}}
{{- $number := regexFind "^[0-9]+" $size -}}
{{- $unit := get $units (trimPrefix $number $size) -}}
{{- if not $unit -}}
{{- fail "store.cacheSize is a whole number of Mi, Gi or Ti, such as 10Gi" -}}
{{- end -}}
{{- printf "%.3f" (mulf 0.9 (float64 $number) $unit) -}}
{{- end -}}

{{- /* User and group of the image (deploy/Dockerfile). */ -}}
{{- define "lorry.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "lorry.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* A setting as a variable's value: texts as they are, lists and numbers as JSON (a whole number
       is a float64 here, which would print as 1.6777216e+07). */ -}}
{{- define "lorry.settingValue" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- define "lorry.check" -}}
{{- $model := .Values.model -}}
{{- if and $model.hub $model.path -}}
{{- fail "model.path is a folder of model.volume: leave it out with model.hub" -}}
{{- end -}}
{{- if not $model.hub -}}
{{- if not $model.volume -}}
{{- fail "no base: give model.hub, or model.volume with model.name" -}}
{{- end -}}
{{- if not $model.name -}}
{{- fail "give model.name, the base's name for callers" -}}
{{- end -}}
{{- end -}}
{{- if .Values.store.url -}}
{{- if not .Values.catalog.existingSecret -}}
{{- fail "a store in a bucket needs a catalog: give catalog.existingSecret, with the URL of a PostgreSQL database" -}}
{{- end -}}
{{- if .Values.store.existingClaim -}}
{{- fail "store.url and store.existingClaim exclude each other: the bucket is the store" -}}
{{- end -}}
{{- else if .Values.store.existingSecret -}}
{{- fail "store.existingSecret is for the driver of a bucket: give store.url too" -}}
{{- end -}}
{{- $replicas := .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicas -}}
{{- if gt (int $replicas) 1 -}}
{{- if not .Values.catalog.existingSecret -}}
{{- fail "more than one server needs a catalog that they share: give catalog.existingSecret, with the URL of a PostgreSQL database" -}}
{{- end -}}
{{- if not (include "lorry.sharesStore" .) -}}
{{- fail "more than one server needs a store that they share: give store.url, a bucket, or set store.accessMode to ReadWriteMany, with a storageClass, or a store.existingClaim, that has it" -}}
{{- end -}}
{{- end -}}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) -}}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.ray.enabled) (not .Values.monitoring.serviceMonitor.enabled) -}}
{{- fail "autoscaling reads the series that the ServiceMonitor brings: set monitoring.serviceMonitor.enabled" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled .Values.ray.enabled -}}
{{- fail "inferencePool and ray exclude each other: each of them chooses the server of a call" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker) -}}
{{- fail "give inferencePool.endpointPicker, the Service of the endpoint picker" -}}
{{- end -}}
{{- end -}}
