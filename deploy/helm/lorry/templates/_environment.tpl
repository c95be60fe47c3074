{{- /* Variables of the server; host, port, store and cache are the image's. */ -}}
{{- define "lorry.environment" -}}
{{- with .Values.model.name }}
- name: LORRY_SERVED_MODEL_NAME
  value: {{ . | quote }}
{{- end }}
{{- with .Values.catalog.existingSecret }}
- name: LORRY_CATALOG
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.catalog.key }}}
{{- end }}
- name: {{ ternary "LORRY_REQUIRE_KEYS" "LORRY_INSECURE_NO_AUTH" .Values.keys.required }}
  value: "true"
- name: LORRY_OPEN_METRICS
  value: {{ .Values.keys.openMetrics | quote }}
{{- if .Values.adminToken.existingSecret }}
- name: LORRY_ADMIN_TOKEN_FILE
  value: /secrets/admin-token/token
{{- end }}
{{- if and (dig "limits" "cpu" "" .Values.resources) (not (hasKey .Values.settings "threads")) }}
# A limit of processors does not show in the cores that a process may use.
- name: LORRY_THREADS
  valueFrom:
    resourceFieldRef: {containerName: server, resource: limits.cpu, divisor: "1"}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: LORRY_{{ upper $name }}
  value: {{ include "lorry.settingValue" $value | quote }}
{{- end }}
{{- end }}
{{- if .Values.model.hub }}
- name: HF_HOME
  value: /model
{{- with .Values.model.hubToken.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.model.hubToken.key }}}
{{- end }}
{{- end }}
{{- with .Values.tracing.endpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $.Release.Namespace }},k8s.pod.name=$(POD_NAME)
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}
